"""What a checkpoint holds, for a person: a pruned network's layers against the dense one's, or the tensors of any file.

show() decides by the file's header; methods() and method() say what can have made it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from compress import checkpoint, cost, method_table
from compress.loading import load_network
from compress.models import create
from compress.sensitivity import Sensitivity

Widths = tuple[int, int]  # outputs, inputs
NEARLY_ZERO = 1e-5  # |w| that the plain listing counts as zero, as ResRep's display_hdf5.py does


def show(path: Path, console: Console | None = None) -> None:
    """Prints a network that kerf saved layer by layer, and any other file tensor by tensor.

    Raises FileNotFoundError, or ValueError with one line for what is no checkpoint or contradicts its own header.
    """
    page, path = _Page(console), Path(path)
    state = checkpoint.load_state(path) if path.suffix == ".safetensors" else {}
    if isinstance(state, dict) and {"arch", "image_size"} <= state.keys():
        _network(path, state, page)
    else:
        _tensors(path, page)


def methods(console: Console | None = None) -> None:
    """Prints the table of methods."""
    page = _Page(console)
    table = page.table("method", "removes", "scope", "when", "needs", "status", "paper")
    for row in method_table.rows():
        page.row(table, row.name, row.removes, row.scope, row.when, row.needs, row.status, row.paper)
    page.console.print(table)
    page.say("kerf-prune methods NAME says more of one, with the numbers that --set takes")


def method(name: str, console: Console | None = None) -> None:
    """Prints what is known of one method. Raises ValueError for a name that is not in the table."""
    page, row = _Page(console), method_table.row(name)
    page.say(f"{row.name}: {row.does}\n")
    page.say(row.head)
    page.say(f"\nremoves {row.removes}, {row.scope}; {row.when}; needs {row.needs}; {row.status}")
    page.say("--set " + (", ".join(f"{k}={v}" for k, v in row.numbers.items()) or "takes nothing"))


def sensitivities(s: Sensitivity, console: Console | None = None) -> None:
    """Prints top-1 with one layer pruned, a row each, the most harmful first."""
    page = _Page(console)
    title = f"top-1 with one layer pruned; whole network {s.dense_top1:.2f} % of {s.images} images"
    page.console.print(title)
    table = page.table("layer", *(f"{level:.0%} removed" for level in s.levels))
    for path in sorted(s.top1, key=lambda path: sum(s.top1[path])):
        page.row(table, path.removesuffix(".weight"), *(f"{value:.2f}" for value in s.top1[path]))
    page.console.print(table)


class _Page:
    """A console, and text that it can print: plain letters where its encoding has no others."""

    def __init__(self, console: Console | None):
        self.console = console or Console(width=None if sys.stdout.isatty() else 120)
        self.full, self.empty, self.to = ("#", ".", "->") if self.console.options.ascii_only else ("█", "░", "→")
        self.cells = 20 if self.console.width >= 112 else 10  # of a bar

    def text(self, value: object) -> Text:
        encoding = self.console.encoding
        return Text(str(value).encode(encoding, "replace").decode(encoding))

    def say(self, line: str) -> None:
        self.console.print(self.text(line), soft_wrap=True)

    def table(self, *columns: str, right: Sequence[str] = (), leading: int = 0) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, leading=leading)
        for name in columns:
            whole = name in right or name in ("method", "MACs left")
            table.add_column(name, justify="right" if name in right else "left", no_wrap=whole, overflow="fold")
        return table

    def row(self, table: Table, *cells: object) -> None:
        table.add_row(*[self.text(cell) for cell in cells])

    def change(self, before: object, after: object) -> str:
        return str(after) if before == after else f"{before}{self.to}{after}"

    def bar(self, share: float) -> str:
        full = max(round(share * self.cells), int(share > 0))
        return self.full * full + self.empty * (self.cells - full)


def _network(path: Path, state: Mapping[str, Any], page: _Page) -> None:
    try:
        model, widths, dense, left = _rebuild(path, state)
    except (ValueError, RuntimeError) as error:  # torch's own where the header's image size is too small
        line = " ".join(str(error).split())
        raise ValueError(line if str(path) in line else f"{path}: {line}") from None
    size = state["image_size"]
    page.say(f"{path}: {state['arch']} for {size}x{size} images, method {state.get('method', 'unknown')}")
    counts = [("parameters", dense.params, left.params), ("MACs", dense.macs, left.macs)]
    page.say("; ".join(f"{name} {a:,} {page.to} {b:,} ({b / a:.2%} kept)" for name, a, b in counts) + "\n")
    zeros = {layer: 1 - cost.element_density(model, [layer]) for layer in left.layers}
    right = ["shape", "outputs", "inputs", "MACs", "left", "%"] + ["zeros"] * any(zeros.values())
    table = page.table("weight", *right, "MACs left", right=right)
    for layer, before in dense.layers.items():
        changes = [page.change(a, b) for a, b in zip(widths[layer], _widths(model, layer), strict=True)]
        share = (macs := left.layers[layer].macs) / before.macs
        figures = [_shape(model.get_parameter(layer)), *changes, _short(before.macs), _short(macs), f"{share:.1%}"]
        if "zeros" in right:
            figures.append(f"{zeros[layer]:.1%}" if zeros[layer] else "")
        page.row(table, layer, *figures, page.bar(share))
    page.console.print(table)


def _rebuild(path: Path, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Widths], cost.Cost, cost.Cost]:
    """The network in the file; outputs and inputs of each layer when it was dense; the cost then and now."""
    arch, size = state["arch"], state["image_size"]
    classes = state.get("num_classes")
    if not isinstance(arch, str) or type(size) is not int or type(classes) not in (int, type(None)):
        raise ValueError(f"its header says arch {arch!r}, image_size {size!r}, num_classes {classes!r}")
    if classes is None:
        classes = _classes(path, create(arch, 10, size))
    model, example = create(arch, classes, size).eval(), torch.zeros(1, 3, size, size)
    dense = cost.count(model, example)
    widths = {layer: _widths(model, layer) for layer in dense.layers}
    load_network(model, path, arch, example)
    return model, widths, dense, cost.count(model, example, {p: model.get_parameter(p) != 0 for p in dense.layers})


def _classes(path: Path, model: nn.Module) -> int:
    """How many the file's last linear layer tells apart."""
    last = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    weights = checkpoint.read_weights(path)
    if last not in weights:
        raise ValueError(f"no {last}, which would tell the number of classes")
    return len(weights[last])


def _widths(model: nn.Module, layer: str) -> Widths:
    """Of a convolution or linear layer, by the path of its weight."""
    module = model.get_submodule(layer.rpartition(".")[0])
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels


def _tensors(path: Path, page: _Page) -> None:
    weights = checkpoint.read_weights(path)
    if not weights:
        raise ValueError(f"{path} holds no tensors")
    small = f"|w| <= {NEARLY_ZERO:g}"
    table = page.table("tensor", "shape", "mean", "std", small, right=("shape", "mean", "std", small))
    for name, weight in weights.items():
        statistics = ("-", "-", "-")
        if weight.numel() and not weight.is_complex():
            w = weight.double()
            near = (w.abs() <= NEARLY_ZERO).double().mean()
            statistics = (f"{w.mean():.4g}", f"{w.std(correction=0):.4g}", f"{near:.2%}")
        page.row(table, name, _shape(weight), *statistics)
    page.console.print(table)
    numbers, size = (sum(count) for count in zip(*[(w.numel(), w.nbytes) for w in weights.values()]))
    page.say(f"\n{path}: {len(weights):,} tensors, {numbers:,} numbers, {size:,} bytes")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if (number := count / unit) >= 1:
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}{name}"
    return str(count)
