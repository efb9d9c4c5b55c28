"""What kerf-deploy inspect says of a network, layer by layer, and of a bundle, kernel by kernel; and both as tables."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from kerf.deploy.report import inspect
from kerf.deploy.runtime import bundle

BLOCKS = (1, 2, 4, 8, 16)


def of_network(path: Path, n: int) -> dict:
    """{file, n, layers, notes} of an .onnx file or a checkpoint, for blocks of ``n`` and of each of BLOCKS.

    layers: [{name, op, shape, macs, parameters, zeros, zero_blocks {N: share}, expected_gain}]; the gain is None for a
    layer that will run dense. Raises as kerf.deploy.report.inspect.survey.
    """
    rows = inspect.survey(path, (n, *(other for other in BLOCKS if other != n)))
    layers = []
    for layer, kept in rows:
        gain = inspect.expected_gain(layer.block, n)
        sparse = layer.op in ("conv", "dense") and gain > 1 and layer.zero_blocks
        layers.append(
            {
                "name": layer.name,
                "op": layer.op,
                "shape": list(layer.shape),
                "macs": layer.macs,
                "parameters": layer.parameters,
                "zeros": 1 - layer.element,
                "zero_blocks": {str(other): 1 - share for other, share in kept.items()},
                "expected_gain": gain if sparse else None,
            }
        )
    macs = [layer.macs for layer, _ in rows if layer.macs]
    total = f"{len(rows)} layers, {sum(layer.parameters for layer, _ in rows) / 1e6:.2f} M weights"
    notes = [total + (f", {sum(macs) / 1e6:.1f} M MACs" if macs else "")]
    notes.append("gains: over kerf's dense kernel, expected from the break-even densities of one AVX-512 machine")
    loose = [layer for layer, _ in rows if inspect.scattered(layer)]
    if loose:
        notes.append(
            f"warning: in {len(loose)} layers most zeros are not in blocks of {n} (e.g. {loose[0].name}), so kernels "
            f"cannot skip them. Another N may fit; or prune with imagenet.py --N {n} --rearrange"
        )
    return {"file": str(path), "n": n, "layers": layers, "notes": notes}


def network_table(found: dict) -> Table:
    name, n = Path(found["file"]).name, found["n"]
    table = Table(title=f"{name}: share of zero elements, and of zero blocks of N output kernels")
    shares = ["zeros", *(f"N={other}" for other in BLOCKS)]
    for column in ("layer", "op", "shape", "MACs M", "weights k", *shares, f"at N={n}"):
        table.add_column(column, justify="left" if column in ("layer", "op") else "right")
    for layer in found["layers"]:
        gain = layer["expected_gain"]
        table.add_row(
            layer["name"],
            layer["op"],
            "x".join(map(str, layer["shape"])),
            f"{layer['macs'] / 1e6:.1f}" if layer["macs"] else "-",
            f"{layer['parameters'] / 1e3:.1f}",
            f"{layer['zeros']:.0%}",
            *(f"{layer['zero_blocks'][str(other)]:.0%}" for other in BLOCKS),
            "dense" if gain is None else f"sparse, {gain:.1f}x",
        )
    return table


def of_bundle(folder: Path) -> dict:
    """{file, model, target, threads, layers} of a bundle: what computes each layer. Raises BundleError."""
    manifest = bundle.read_manifest(folder)
    return {"file": str(folder)} | {key: manifest[key] for key in ("model", "target", "threads", "layers")}


def bundle_table(found: dict) -> Table:
    table = Table(title=f"{Path(found['file']).name}: {found['model']} for {found['target']}")
    for name in ("layer", "shape", "block", "density", "kernel", "configuration"):
        table.add_column(name)
    for row in found["layers"]:
        config = " ".join(f"{k}={v}" for k, v in row["config"].items())
        density = f"{row['density']:.0%}"
        table.add_row(row["name"], row["shape"], row["block"] or "dense", density, row["kernel"], config)
    return table
