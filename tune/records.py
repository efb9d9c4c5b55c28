"""kerf-tune show | export-records | import-records: what was measured, and its way to another machine."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy import atomic, targets
from deploy.environment import provenance
from deploy.flags import Parser
from deploy.record import Record, RecordBook
from kernels import BY_NAME
from kernels.problem import Problem
from tune import verdict

RECORDS = Path("runs/records.jsonl")


def show(args: argparse.Namespace) -> None:
    """A table per target and versions: every problem, its best and how many configurations were tried."""
    book = opened(args.records)
    groups: dict[tuple, set[str]] = defaultdict(set)
    for r in layers_of(book):
        groups[r.target, tuple(sorted(r.versions.items()))].add(r.problem)
    console = Console(soft_wrap=False)
    here = tuple(sorted(provenance().items()))
    for (target, versions), problems in groups.items():
        name = f"{target}, {', '.join(f'{k} {v}' for k, v in versions)}"
        table = Table("layer", "block", "best µs", "kernel", "configuration", "tried", "failed", title=name)
        for text in sorted(problems):
            p, best = Problem.from_json(text), book.best(text, target, dict(versions))
            found = book.of(text, target, dict(versions))
            tried = {r.what for r in found}
            config = " ".join(f"{k}={v}" for k, v in best.config.items()) if best else ""
            table.add_row(
                p.describe(), f"{p.block}x1" if p.block else "", f"{best.us:.1f}" if best else "-",
                best.kernel if best else "none works", config, str(len(tried)),
                str(len({r.what for r in found if r.error})),
            )  # fmt: skip
        console.print(table)
        if versions != here:
            console.print(f"not used here: this is {', '.join(f'{k} {v}' for k, v in here)}", markup=False)


def export_records(args: argparse.Namespace) -> None:
    """Writes this machine's records of the installed versions, or only the best of each problem."""
    book = opened(args.records)
    found = [r for r in layers_of(book) if r.versions == provenance()]
    if args.best:
        winners = {r.key: book.best(r.problem, r.target, r.versions) for r in found}
        found = [r for r in winners.values() if r is not None]
    if not found:
        raise ValueError(f"{args.records}: none of its {len(book.records)} records is of {describe(provenance())}")
    atomic.write(args.file, "".join(r.to_line() + "\n" for r in found))
    print(f"{args.file}: {len(found)} records of {len({r.problem for r in found})} layers")


def import_records(args: argparse.Namespace) -> None:
    """Adds a file's records. Those that do not fit are left out, with the reason; ValueError when none does."""
    book, known = RecordBook(args.records), set()
    known = {r.to_json() for r in book.records}
    reasons: Counter[str] = Counter()
    fitting = []
    for number, line in enumerate(args.file.read_text().splitlines(), 1):
        try:
            record = Record.from_line(line)
        except ValueError as error:
            raise ValueError(f"{args.file}:{number}: {error}; expected a file of kerf-tune export-records") from error
        if record.to_json() in known:
            reasons["known already"] += 1
        elif reason := misfit(record):
            reasons[reason] += 1
        else:
            fitting.append(record)
    said = "".join(f"\n  {count} left out: {reason}" for reason, count in reasons.most_common())
    if not fitting and set(reasons) != {"known already"}:
        raise ValueError(f"{args.file}: no record fits{said}")
    book.add(*fitting)
    print(f"{args.records}: {len(fitting)} records added{said}")


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
    except (ValueError, TypeError) as error:
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
    """Without those of whole networks (tune.verdict), which mean nothing elsewhere."""
    return [r for r in book.records if r.kernel != verdict.KERNEL]


def opened(path: Path) -> RecordBook:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no records; tune something first, or give --records")
    return RecordBook(path)


def describe(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())


COMMANDS = {"show": show, "export-records": export_records, "import-records": import_records}


def run(words: list[str]) -> None:
    """``words[0]`` is one of COMMANDS. Raises ValueError or OSError with one line."""
    name, *rest = words
    p = Parser(f"kerf-tune {name}", description=COMMANDS[name].__doc__)
    if name != "show":
        p.add_argument("file", type=Path)
    if name == "export-records":
        p.add_argument("--best", action="store_true", help="only the best of each problem")
    p.add_argument("--records", type=Path, default=RECORDS, help=f"the record file, {RECORDS} by default")
    COMMANDS[name](p.parse_args(rest))
