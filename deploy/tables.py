"""What kerf-deploy inspect prints: a network layer by layer, a bundle kernel by kernel."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from deploy import bundle, inspect

BLOCKS = (1, 2, 4, 8, 16)


def of_network(path: Path, n: int) -> tuple[Table, list[str]]:
    """(table, lines below it) of an .onnx file or a checkpoint, for blocks of ``n`` and, in columns, of BLOCKS.

    Raises as deploy.inspect.survey.
    """
    rows = inspect.survey(path, (n, *(other for other in BLOCKS if other != n)))
    table = Table(title=f"{path.name}: share of zero elements, and of zero blocks of N output kernels")
    shares = ["zeros", *(f"N={other}" for other in BLOCKS)]
    for name in ("layer", "op", "shape", "MACs M", "weights k", *shares, f"at N={n}"):
        table.add_column(name, justify="left" if name in ("layer", "op") else "right")
    for layer, kept in rows:
        gain = inspect.expected_gain(layer.block, n)
        sparse = layer.op in ("conv", "dense") and gain > 1 and layer.zero_blocks
        table.add_row(
            layer.name,
            layer.op,
            "x".join(map(str, layer.shape)),
            f"{layer.macs / 1e6:.1f}" if layer.macs else "-",
            f"{layer.parameters / 1e3:.1f}",
            f"{1 - layer.element:.0%}",
            *(f"{1 - kept[other]:.0%}" for other in BLOCKS),
            f"sparse, {gain:.1f}x" if sparse else "dense",
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
    return table, notes


def of_bundle(folder: Path) -> Table:
    """What computes each layer. Raises BundleError."""
    manifest = bundle.read_manifest(folder)
    table = Table(title=f"{folder.name}: {manifest['model']} for {manifest['target']}")
    for name in ("layer", "shape", "block", "density", "kernel", "configuration"):
        table.add_column(name)
    for row in manifest["layers"]:
        config = " ".join(f"{k}={v}" for k, v in row["config"].items())
        density = f"{row['density']:.0%}"
        table.add_row(row["name"], row["shape"], row["block"] or "dense", density, row["kernel"], config)
    return table
