"""What kerf-deploy inspect shows: a network layer by layer, a bundle kernel by kernel."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from kerf.deploy.report.claims import ENGINES
from kerf.deploy.report.inspect import SIZES, Inspection
from kerf.deploy.runtime.manifest import Manifest
from kerf.failures import printable


def of_network(found: Inspection) -> Table:
    shares = ["zeros", *(f"N={n}" for n in SIZES)]
    table = Table(title=_text(f"{found.path.name}: share of zero elements, and of zero blocks of N output kernels"))
    numbers = ["numbers"] if any(layer.numbers == "int8" for layer in found.layers) else []
    for column in ("layer", "op", "shape", *numbers, "MACs M", "weights k", *shares, f"at N={found.n}"):
        table.add_column(column, justify="left" if column in ("layer", "op") else "right")
    for layer in found.layers:
        gain = layer.expected_gain
        _row(
            table,
            layer.name,
            layer.op,
            "x".join(map(str, layer.shape)),
            *([layer.numbers] if numbers else []),
            f"{layer.macs / 1e6:.1f}" if layer.macs else "-",
            f"{layer.parameters / 1e3:.1f}",
            f"{layer.zeros:.0%}",
            *(f"{layer.zero_blocks[n]:.0%}" for n in SIZES),
            "dense" if gain is None else f"sparse, {gain:.1f}x",
        )
    return table


def of_bundle(name: str, manifest: Manifest) -> Table:
    table = Table(title=_text(f"{name}: {manifest['model']} for {manifest['target']}"))
    for column in ("layer", "shape", "numbers", "block", "density", "kernel", "configuration"):
        table.add_column(column)
    if manifest["engine"] != "kerf":
        engine = ENGINES.get(manifest["engine"], manifest["engine"])
        table.caption = _text(f"the whole network runs in {engine}")
    else:
        steps = [step["engine"] for plan in manifest["plans"][:1] for step in plan["steps"]]
        if len(steps) > 1:
            table.caption = f"{len(steps)} pieces, {steps.count('kerf')} of them kerf's; ONNX Runtime runs the others"
    for row in manifest["layers"]:
        config = " ".join(f"{k}={v}" for k, v in row["config"].items())
        density = f"{row['density']:.0%}"
        numbers = row.get("numbers", "-")  # of an older bundle
        _row(table, row["name"], row["shape"], numbers, row["block"] or "dense", density, row["kernel"], config)
    return table


def _row(table: Table, *cells: str) -> None:
    """Cells as they are: names in a file are no markup of rich's, and no words to a terminal."""
    table.add_row(*map(_text, cells))


def _text(words: str) -> Text:
    return Text(printable(words))
