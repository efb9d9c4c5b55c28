"""kerf-tune show | export-records | import-records: what was measured, and its way to another machine."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerf import console, files, gate
from kerf.console import Parser
from kerf.deploy.compiler import targets
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook
from kerf.errors import BadInput
from kerf.failures import printable
from kerf.kernels.backends import BY_NAME
from kerf.kernels.problem import Problem
from kerf.tune import whole_network
from kerf.tune.request import RECORDS


def show(args: argparse.Namespace) -> dict[str, Any]:
    """A table per target and versions: every problem, its best and how many configurations were tried."""
    book = opened(args.records)
    groups, here = measured(book), provenance()
    found = {"records": str(args.records), "versions": here, "groups": groups}
    if args.json:
        return found
    screen = Console(soft_wrap=False)
    for group in groups:
        name = Text(printable(f"{group['target']}, {describe(group['versions'])}"))
        table = Table("layer", "block", "best µs", "kernel", "configuration", "tried", "failed", title=name)
        for row in group["layers"]:
            config = " ".join(f"{k}={v}" for k, v in row["config"].items())
            cells = (
                row["layer"], f"{row['block']}x1" if row["block"] else "",
                "-" if row["best_us"] is None else f"{row['best_us']:.1f}", row["kernel"] or "none works", config,
                row["tried"], row["failed"],
            )  # fmt: skip
            table.add_row(*(Text(printable(cell)) for cell in cells))
        screen.print(table)
        if group["versions"] != here:
            screen.print(f"not used here: this is {describe(here)}", markup=False)
    return found


def measured(book: RecordBook) -> list[dict[str, Any]]:
    """[{target, versions, layers}] of a book; layers: [{layer, block, best_us, kernel, config, tried, failed}]."""
    groups: dict[tuple, set[str]] = defaultdict(set)
    for r in layers_of(book):
        groups[r.target, tuple(sorted(r.versions.items()))].add(r.problem)
    made = []
    for (target, versions), problems in groups.items():
        rows = []
        for text in sorted(problems):
            try:
                p = Problem.from_json(text)
            except BadInput:  # of another version, or nobody's
                continue
            best = book.best(text, target, dict(versions))
            found = book.of(text, target, dict(versions))
            rows.append(
                {
                    "layer": p.describe(),
                    "block": p.n,
                    "best_us": best.us if best else None,
                    "kernel": best.kernel if best else None,
                    "config": dict(best.config) if best else {},
                    "tried": len({r.what for r in found}),
                    "failed": len({r.what for r in found if r.error}),
                }
            )
        made.append({"target": target, "versions": dict(versions), "layers": rows})
    return made


def export_records(args: argparse.Namespace) -> dict[str, Any]:
    """Writes this machine's records of the installed versions, or only the best of each problem."""
    book = opened(args.records)
    found = [r for r in layers_of(book) if r.versions == provenance()]
    if args.best:
        winners = {r.key: book.best(r.problem, r.target, r.versions) for r in found}
        found = [r for r in winners.values() if r is not None]
    if not found:
        raise BadInput(f"{args.records}: none of its {len(book.records)} records is of {describe(provenance())}")
    files.write(args.file, "".join(r.to_line() + "\n" for r in found))
    layers = len({r.problem for r in found})
    print(f"{args.file}: {len(found)} records of {layers} layers")
    return {"files": [str(args.file)], "records": len(found), "layers": layers}


def import_records(args: argparse.Namespace) -> dict[str, Any]:
    """Adds a file's records. Those that do not fit are left out, with the reason; ValueError when none does."""
    book = RecordBook(args.records)
    known = {r.to_json() for r in book.records}
    reasons: Counter[str] = Counter()
    fitting = []
    for number, line in enumerate(_lines(args.file), 1):
        try:
            record = Record.from_line(line)
        except ValueError as error:
            raise BadInput(f"{args.file}:{number}: {error}; expected a file of kerf-tune export-records") from error
        if record.to_json() in known:
            reasons["known already"] += 1
        elif reason := misfit(record):
            reasons[reason] += 1
        else:
            fitting.append(record)
    said = "".join(f"\n  {count} left out: {reason}" for reason, count in reasons.most_common())
    if not fitting and set(reasons) != {"known already"}:
        raise BadInput(f"{args.file}: no record fits{said}")
    book.add(*fitting)
    print(f"{args.records}: {len(fitting)} records added{said}")
    return {"files": [str(args.records)], "added": len(fitting), "left_out": dict(reasons)}


def _lines(path: Path) -> list[bytes]:
    return gate.read_bytes(path, "a file of kerf-tune export-records").splitlines()


def misfit(record: Record) -> str | None:
    """Why a record says nothing about this machine; None when it does."""
    here = provenance()
    for name, value in here.items():
        if record.versions.get(name) != value:
            return f"made with {name} {record.versions.get(name, 'unknown')}, this is {value}"
    try:
        threads = int(record.target.rpartition("-num-cores=")[2])
        target = targets.parse(record.target.rpartition(" -num-cores=")[0], threads)
        p = Problem.from_json(record.problem)
    except (ValueError, TypeError, KeyError) as error:
        return f"its target or problem cannot be read: {error}"
    if targets.describe(target) != record.target:
        return f"target {record.target!r} is {targets.describe(target)!r} here"
    if foreign := targets.foreign(target):
        return f"target {record.target}: {foreign}"
    kernel = BY_NAME.get(record.kernel)
    if kernel is None:
        return f"no kernel {record.kernel}; there are {', '.join(BY_NAME)}"
    if refusal := kernel.refuses(p, target):
        return f"{record.kernel} does not compute {p.describe()}: {refusal}"
    if record.config not in kernel.configs(p, target):
        return f"{record.kernel} has no such configuration for {p.describe()}"
    return None


def layers_of(book: RecordBook) -> list[Record]:
    """Without those of whole networks (kerf.tune.whole_network), which mean nothing elsewhere."""
    return [r for r in book.records if r.kernel != whole_network.KERNEL]


def opened(path: Path) -> RecordBook:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no records; tune something first, or give --records")
    return RecordBook(path)


def describe(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())


COMMANDS = {"show": show, "export-records": export_records, "import-records": import_records}
SHORT = {"show": "show", "export": "export-records", "import": "import-records"}  # as kerf records has them


def main(argv: list[str] | None = None, program: str = "kerf-tune") -> int:
    """The exit code of ``program show``, ``export-records`` or ``import-records``, which argv begins with."""
    words = sys.argv[1:] if argv is None else argv
    return console.guarded(program, lambda: run(words, program))


def run(words: list[str], program: str) -> None:
    name, *rest = words or [""]
    name = SHORT.get(name, name)
    if name in ("-h", "--help"):
        print(f"usage: {program} {{{','.join(SHORT)}}} [FLAG ...]; {program} WORD --help says more of one")
        raise SystemExit(0)
    if name not in COMMANDS:
        raise BadInput(f"{name or 'nothing'}: expected {', '.join(COMMANDS)}")
    p = Parser(f"{program} {name}", description=COMMANDS[name].__doc__)
    if name != "show":
        p.add_argument("file", type=Path)
    if name == "export-records":
        p.add_argument("--best", action="store_true", help="only the best of each problem")
    p.add_argument("--records", type=Path, default=RECORDS, help=f"the record file, {RECORDS} by default")
    console.add_flags(p)
    args = p.parse_args(rest)
    quiet = args.quiet and name != "show"  # a table is what was asked for
    console.carry_out(lambda: COMMANDS[name](args), quiet, args.json)
