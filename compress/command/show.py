"""kerf-prune show | methods: what a checkpoint holds and what can have made it, as tables for a person or as JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerf.compress.command import method_table
from kerf.compress.command.describe import NEARLY_ZERO, Network, Tensors, describe
from kerf.compress.pruning.sensitivity import Sensitivity
from kerf.console import Parser


def run(argv: Sequence[str], program: str) -> None:
    """`argv[0]` is one of COMMANDS. Raises ValueError or OSError with one line."""
    name, *rest = argv
    parser = Parser(program, description=COMMANDS[name])
    if name == "show":
        parser.add_argument("given", type=Path, metavar="CHECKPOINT")
    else:
        parser.add_argument("given", nargs="?", metavar="METHOD", help="only this one, in full")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.add_argument("--quiet", action="store_true", help="changes nothing: the table is what was asked for")
    args = parser.parse_args(rest)
    if args.json:
        values = {**(describe(args.given) if name == "show" else method_table.describe(args.given))}
        # JSON has no NaN, which tensors may have
        print(json.dumps(json.loads(json.dumps(values), parse_constant=lambda _: None), indent=2))
    elif name == "show":
        show(args.given)
    else:
        methods(args.given)


def show(path: Path, console: Console | None = None) -> None:
    """Prints a network that kerf saved layer by layer, and any other file tensor by tensor.

    Raises as `describe`.
    """
    page, content = _Page(console), describe(path)
    if "layers" in content:
        _network(content, page)
    else:
        _tensors(content, page)


def methods(name: str | None = None, console: Console | None = None) -> None:
    """Prints the table of methods, or all that is known of one. Raises ValueError for a name that is not in it."""
    page = _Page(console)
    if name is None:
        table = page.table("method", "removes", "scope", "when", "needs", "brings", "status", "paper")
        for row in method_table.rows():
            cells = (row.name, row.removes, row.scope, row.when, row.needs, row.brings, row.status, row.paper)
            page.row(table, *cells)
        page.console.print(table)
        page.say("kerf-prune methods NAME says more of one, with the numbers that --set takes")
        return
    row = method_table.row(name)
    numbers = ", ".join(f"{key}={method_table.text(value)}" for key, value in row.numbers.items())
    page.say(f"{row.name}: {row.does}\n\n{row.head}")
    page.say(f"\nremoves {row.removes}, {row.scope}; {row.when}; needs {row.needs}; brings {row.brings}; {row.status}")
    page.say(f"--set {numbers or 'takes nothing'}")


COMMANDS = {
    "show": "A network that kerf saved layer by layer, and any other file tensor by tensor.",
    "methods": "The table of methods, or all that is known of one.",
}


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


def _network(content: Network, page: _Page) -> None:
    size = content["image_size"]
    page.say(f"{content['file']}: {content['arch']} for {size}x{size} images, method {content['method']}")
    if bits := content["mean_bits"]:
        page.say(f"quantised: weights of {bits:.2f} bits on average, inputs of 8")
    counts = {"parameters": content["params"], "MACs": content["macs"]}
    page.say("; ".join(f"{name} {a:,} {page.to} {b:,} ({b / a:.2%} kept)" for name, (a, b) in counts.items()) + "\n")
    zeros = any(layer["zeros"] for layer in content["layers"])
    right = ["shape", "outputs", "inputs", "MACs", "left", "%"] + ["zeros"] * zeros
    table = page.table("weight", *right, "MACs left", right=right)
    for layer in content["layers"]:
        changes = [page.change(*layer[key]) for key in ("outputs", "inputs")]
        before, macs = layer["macs"]
        figures = [_shape(layer["shape"]), *changes, _short(before), _short(macs), f"{macs / before:.1%}"]
        if zeros:
            figures.append(f"{layer['zeros']:.1%}" if layer["zeros"] else "")
        page.row(table, layer["name"], *figures, page.bar(macs / before))
    page.console.print(table)


def _tensors(content: Tensors, page: _Page) -> None:
    small = f"|w| <= {NEARLY_ZERO:g}"
    table = page.table("tensor", "shape", "mean", "std", small, right=("shape", "mean", "std", small))
    for tensor in content["tensors"]:
        statistics = ["-"] * 3
        if tensor["mean"] is not None:
            statistics = [f"{tensor['mean']:.4g}", f"{tensor['std']:.4g}", f"{tensor['nearly_zero']:.2%}"]
        page.row(table, tensor["name"], _shape(tensor["shape"]), *statistics)
    page.console.print(table)
    numbers = sum(tensor["numbers"] for tensor in content["tensors"])
    page.say(
        f"\n{content['file']}: {len(content['tensors']):,} tensors, {numbers:,} numbers, {content['bytes']:,} bytes"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if (number := count / unit) >= 1:
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}{name}"
    return str(count)
