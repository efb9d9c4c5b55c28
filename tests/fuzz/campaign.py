"""make fuzz MINUTES=30: spoiled inputs by the thousand, and a table of what was not right.

    python -m tests.fuzz.campaign --minutes 30 [--inputs 5000] [--only inspected] [--seed 0] [--case 1234]

An input is made of its number alone, so a number that the table names is tried again by --case. What was wrong is kept,
with its output, in --keep.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import kinds, kinds_machine, pool, seeds


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--inputs", type=int, default=10**9)
    p.add_argument("--only", default="", help="part of a maker's name in tests/fuzz/kinds.py")
    p.add_argument("--quick", action="store_true", help="kinds that take a moment, and no training")
    p.add_argument("--seed", type=int, default=0, help="number of the first input")
    p.add_argument("--case", type=int, nargs="+", help="these inputs only, what they print included")
    p.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--seeds", type=Path, help="a folder for the valid files, kept for the next time")
    p.add_argument("--together", type=Path, help="a file of counts, for one table of several campaigns")
    p.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="kerf-fuzz-") as name:
        root = Path(name)
        folder = a.seeds.absolute() if a.seeds else root / "seeds"
        prepared(folder, a.quick)
        pool.warm()
        if kinds.full_disk in kinds.KINDS and not kinds_machine.may_mount():
            print("no file system may be mounted here: full disks are not tried")
            del kinds.KINDS[kinds.full_disk]
        found, began = [], time.monotonic()
        shutil.rmtree(a.keep, ignore_errors=True)
        with contextlib.suppress(KeyboardInterrupt):  # the table is of what was tried until then
            for outcome in pool.outcomes(cases(a, folder, root), a.workers):
                found.append(outcome)
                if outcome.wrong or a.case:
                    told(outcome, a.keep)
                pool.clean(outcome.case.folder)
        rows = counts(found)
        if a.together:
            rows = together(a.together, rows)
        print(table(rows, found, time.monotonic() - began, a.workers))
    return int(any(o.wrong for o in found))


def prepared(folder: Path, quick: bool) -> None:
    """The valid files, made by a process of its own: this one must start no thread."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = multiprocessing.get_context("spawn").Process(target=seeds.make, args=(folder, not quick))
    made.start()
    made.join()
    if made.exitcode:
        raise SystemExit(f"the valid files could not be made (exit code {made.exitcode})")
    (folder / "done").touch()


def cases(a: argparse.Namespace, folder: Path, root: Path) -> Iterator[pool.Case]:
    end = time.monotonic() + 60 * a.minutes
    for number in a.case or range(a.seed, a.seed + a.inputs):
        if time.monotonic() > end:
            return
        place = root / str(number)
        place.mkdir()
        yield kinds.draw(folder, place, number, a.only, a.quick)


def told(o: pool.Outcome, keep: Path) -> None:
    last = next((line for line in reversed(o.err.splitlines()) if line.strip()), "")
    print(f"{o.case.name} {o.case.kind}: {o.wrong or 'right'} ({o.code}, {o.seconds:.1f} s) {last[:300]!r}", flush=True)
    to = keep / o.case.name
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    (to / "stderr").write_text(o.err, errors="backslashreplace")
    (to / "stdout").write_text(o.out, errors="backslashreplace")
    for error in (o.case.folder / ".tmp").glob("kerf-error-*.txt"):
        shutil.copy(error, to / "traceback")


def counts(found: list[pool.Outcome]) -> dict[str, Counter[str]]:
    """Kind of file -> kind of what was wrong -> how many."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for o in found:
        rows[o.case.kind][o.wrong] += 1
    return rows


def together(path: Path, rows: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """With those of campaigns before, which the file has; now it has these, too."""
    before = json.loads(path.read_text()) if path.exists() else {}
    for kind, earlier in before.items():
        rows.setdefault(kind, Counter()).update(earlier)
    path.write_text(json.dumps(rows, indent=1))
    return rows


def table(rows: dict[str, Counter[str]], found: list[pool.Outcome], seconds: float, workers: int) -> str:
    lines = ["| where | tried | right | wrong | kinds |", "|-|-|-|-|-|"]
    tried = right = 0
    for kind, row in sorted(rows.items()):
        said = ", ".join(f"{n} {what}" for what, n in row.most_common() if what)
        lines.append(f"| {kind} | {row.total()} | {row['']} | {row.total() - row['']} | {said} |")
        tried, right = tried + row.total(), right + row[""]
    lines.append(f"| all | {tried} | {right} | {tried - right} | |")
    codes = Counter(o.code for o in found)
    said = ", ".join(f"{code}: {n}" for code, n in codes.most_common())
    slow = max((o.seconds for o in found), default=0)
    when = f"{cpu()}, {time.strftime('%Y-%m-%d')}"
    lines.append(f"\n{seconds:.0f} s, {workers} at a time, the slowest {slow:.1f} s; exit codes {said}; {when}")
    return "\n".join(lines)


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
