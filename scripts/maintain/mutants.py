"""Mutation test of methods and of the pruning core: a sample of small changes, each run against the tests it concerns.

Launch:    python scripts/maintain/mutants.py --each 5 --out runs/mutants.jsonl [--only csgd dmcp] [--minutes 2]
Hardware:  any CPU; some minutes to see which test runs which statement, then a few seconds of a core for a mutant.
           Run it again to go on; finished mutants stay,
           and survivors are tried again where tests were added.
Expected:  a line per mutant (file, line, change, killed or not, by which test), and the share that is killed.

A mutant is one changed operator, comparison, constant, condition or call that is left out, drawn with a seed.
It is killed where one of the tests of its file (`tests_of`) that run its statement fails, or takes more than three
times as long as with what is there. The quickest come first, and no more than BUDGET seconds of them, so that a
survivor may be one that slower tests would kill. Each runs in a process forked behind all imports, in which the
function's code is exchanged.
"""

import argparse
import ast
import builtins
import copy
import gc
import importlib
import io
import json
import os
import random
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

CORE = ("criteria", "recipe", "removal", "run", "schedules", "scopes")  # of compress/pruning
OF_CORE = ("pruning/test_*.py", "units/test_*.py", "training/test_masking.py")  # of tests/compress, for the core
OF_ALL = ("methods/test_cores.py", "methods/test_reports.py")  # for any method
QUICK = "not ends_with_ and not useless_channels"  # pytest's -k: without trainings that are longer than BUDGET
BUDGET = 8.0  # seconds of tests for a mutant
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "--timeout=0")  # its alarm would count waiting; ours does not
SEEN = "_seen_by_mutants"  # among the builtins, where functions of any file find it
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt,
    ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Nodes within functions that can be changed, and how."""
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        for statement in function.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
                    yield node, "operator"
                elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
                    yield node, "comparison"
                elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                    yield node, "constant"
                elif isinstance(node, ast.If | ast.IfExp):
                    yield node, "condition"
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    yield node, "call"


def change(node: ast.AST, kind: str) -> None:
    if kind == "operator":
        node.op = SWAPS[type(node.op)]()  # type: ignore[attr-defined]
    elif kind == "comparison":
        first, *others = node.ops  # type: ignore[attr-defined]
        node.ops = [SWAPS[type(first)](), *others]  # type: ignore[attr-defined]
    elif kind == "constant":
        node.value = node.value + 1  # type: ignore[attr-defined]
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
    else:
        node.value = ast.Constant(None)  # type: ignore[attr-defined]


def statements(tree: ast.Module) -> dict[int, int]:
    """By the id of a node within a function: the line at which its statement, the innermost one, begins."""
    lines = dict[int, int]()
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        for statement in (n for n in ast.walk(function) if isinstance(n, ast.stmt) and n is not function):
            for node in ast.walk(statement):
                lines[id(node)] = max(lines.get(id(node), 0), statement.lineno)
    return lines


def drawn(path: Path, count: int, seed: int) -> Iterator[tuple[str, int, ast.Module]]:
    """(name, line of its statement, tree) of `count` mutants of a file."""
    tree = ast.parse(path.read_text())
    at = {(id(n), kind): n for n, kind in places(tree)}
    lines = statements(tree)
    for key in random.Random(f"{path.name} {seed}").sample(list(at), min(count, len(at))):
        node, kind = at[key], key[1]
        before = ast.unparse(node).splitlines()[0]
        kept = dict(node.__dict__)  # not copies: other mutants are nodes within
        change(node, kind)
        after = ast.unparse(node).splitlines()[0]
        at_line = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}"
        name = f"{path.stem}:{at_line} {kind}: {before[:60]} -> {after[:60]}"
        mutant = copy.deepcopy(tree)
        node.__dict__.update(kept)
        yield name, lines[key[0]], mutant


def watched(path: Path) -> ast.Module:
    """Its tree, where every statement of a function is preceded by one that notes (stem, line) in `seen`."""
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    lists = [getattr(n, at, None) for f in functions for n in ast.walk(f) for at in ("body", "orelse", "finalbody")]
    for block in {id(block): block for block in lists if isinstance(block, list)}.values():
        notes = [ast.parse(f"{SEEN}.add(({path.stem!r}, {s.lineno}))").body for s in block]
        block[:] = [s for note, old in zip(notes, list(block)) for s in (*note, old)]
    return tree


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def exchange(path: Path, tree: ast.Module) -> None:
    """The functions of an imported file get the code of `tree`, wherever they are referred to from."""
    module = compile(ast.fix_missing_locations(tree), str(path), "exec")
    new = {(c.co_name, c.co_firstlineno): c for c in codes(module) if c.co_name != "<lambda>"}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == str(path):
            old = thing.__code__
            if (code := new.get((old.co_name, old.co_firstlineno))) and code.co_freevars == old.co_freevars:
                thing.__code__ = code


# test -> seconds of the processor, (stem, line) of the statements that it runs
Runs = dict[str, tuple[float, list[tuple[str, int]]]]


class Same:
    """A test draws the same numbers whichever ran before it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self.draw()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        self.draw()

    def draw(self) -> None:
        import numpy as np
        import torch

        random.seed(0), np.random.seed(0), torch.manual_seed(0)


class Statements(Same):
    """What each test that passes runs, and for how many seconds of the processor."""

    def __init__(self, seen: set[tuple[str, int]]):
        self.seen, self.prepared = seen, dict[str, set[tuple[str, int]]]()
        self.tests, self.passed = dict[str, tuple[float, set[tuple[str, int]]]](), set[str]()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.seen.clear()
        start = time.process_time()
        yield
        self.tests[item.nodeid] = time.process_time() - start, set(self.seen)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        # a fixture of the file runs once, and is what all of its tests are about
        self.prepared.setdefault(item.nodeid.partition("::")[0], set()).update(self.seen)
        self.draw()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def rows(self) -> Runs:
        lines = {
            name: found | self.prepared.get(name.partition("::")[0], set()) for name, (_, found) in self.tests.items()
        }
        return {name: (self.tests[name][0], sorted(lines[name])) for name in sorted(self.passed)}


class Failures(Same):
    first: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid


def ran(arguments: Sequence[str], plugin: object) -> int:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return int(pytest.main([*OPTIONS, *arguments], plugins=[plugin] if plugin else []))


def tests_of(root: Path, files: Sequence[Path]) -> list[Path]:
    """Those that import from one of the files or are named as one, those of the core, those over many methods.

    The sweeps over the whole table of methods are not among them: they take longer than all others together.
    """
    folder, found = root / "tests/compress", set[Path]()
    for path in files:
        if path.stem in CORE:
            found.update(p for pattern in OF_CORE for p in folder.glob(pattern))
            continue
        found.update(p for name in OF_ALL if (p := folder / name).is_file())
        told = f"{path.parent.name}.{path.stem} import", f"{path.parent.name} import {path.stem}\n"
        for tests in folder.rglob("test_*.py"):
            if tests.stem == f"test_{path.stem}" or any(t in tests.read_text() for t in told):
                found.add(tests)
    return sorted(found)


def watch(tests: Path, files: Sequence[Path], out: Path) -> Runs:
    """Runs a file of tests, in a process of its own, on watched files: test -> (seconds, [(stem, line), …])."""
    if not os.fork():
        for path in files:
            exchange(path, watched(path))
        plugin = Statements(getattr(builtins, SEEN))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            pytest.main(["-q", *OPTIONS[2:], "-k", QUICK, str(tests)], plugins=[plugin])
        out.write_text(json.dumps(plugin.rows()))
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit(f"{tests} could not be watched")
    found = json.loads(out.read_text())
    out.unlink()
    return found


def which_run(wanted: Sequence[Path], root: Path, files: Sequence[Path], told: Path) -> Runs:
    """Of these tests, from the file of an earlier run where neither they nor what they run has changed since."""
    known = json.loads(told.read_text()) if told.is_file() else {}
    changed = {path.stem: path.stat().st_mtime for path in files}
    for tests in wanted:
        name = str(tests.relative_to(root))
        old = known.get(name, {"at": 0.0, "tests": {}})
        newest = max([tests.stat().st_mtime, *(changed.get(s, 0) for _, ls in old["tests"].values() for s, _ in ls)])
        if newest > old["at"]:
            at = time.time()
            known[name] = {"at": at, "tests": watch(tests, files, told.with_suffix(".part"))}
            print(f"watched   {name}", flush=True)
            told.with_suffix(".part").write_text(json.dumps(known))
            told.with_suffix(".part").replace(told)
    found = (known[str(tests.relative_to(root))]["tests"] for tests in wanted)
    return {test: run for own in found for test, run in own.items()}


def killed(path: Path, tree: ast.Module, tests: Sequence[str], seconds: float) -> str | None:
    """Which test fails, "time" where they do not end; None where the mutant survives."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        most = int(3 * seconds) + 20
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        exchange(path, tree)
        by, start = None, 0
        while start < len(tests) and not by:  # few at first: what is collected for the others is not needed then
            seen, end = Failures(), 4 * start + 4
            result = ran(tests[start:end], seen)
            by, start = seen.first or (f"exit {result}" if result not in (0, 5) else None), end
        os.write(write, (by or "").encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        answer = told.read()
    _, status = os.waitpid(child, 0)
    return answer or ("time" if status else None)


def chosen(runs: Runs, stem: str, line: int) -> tuple[list[str], float]:
    """The tests that run a statement, quickest first, within BUDGET; and their seconds."""
    found = sorted((seconds, name) for name, (seconds, lines) in runs.items() if (stem, line) in set(map(tuple, lines)))
    total, names = 0.0, list[str]()
    for seconds, name in found:
        if total + seconds <= BUDGET or not names:
            total, names = total + seconds, [*names, name]
    return names, total


def last_of(out: Path) -> dict[str, dict[str, Any]]:
    """Mutant -> its last row: survivors are tried again once there are other tests of theirs."""
    lines = out.read_text().splitlines() if out.is_file() else []
    return {row["mutant"]: row for row in map(json.loads, lines)}


def files_of(root: Path) -> list[Path]:
    methods = sorted((root / "compress/methods").rglob("*.py"))
    core = [root / "compress/pruning" / f"{name}.py" for name in CORE]
    return [*(p for p in methods if p.name not in ("__init__.py", "published.py")), *core]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[2], help="the checkout that `import kerf` finds"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of files, without .py")
    parser.add_argument("--each", type=int, default=5, help="mutants of every file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/mutants.jsonl"), help="beside it: which test runs what")
    a = parser.parse_args()
    ends, out, root = time.monotonic() + 60 * a.minutes, a.out.resolve(), a.root.resolve()
    done = last_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    import torch

    torch.set_num_threads(1)
    setattr(builtins, SEEN, set())
    files = files_of(root)
    for path in files:
        importlib.import_module("kerf." + ".".join(path.relative_to(root).with_suffix("").parts))
    wanted = [path for path in files if path.stem in a.only] or files
    ran(["--collect-only", *map(str, tests_of(root, wanted))], None)  # imports the tests
    for path in wanted:
        runs = which_run(tests_of(root, [path]), root, files, out.with_suffix(".tests.json"))
        for name, line, tree in drawn(path, a.each, a.seed):
            tests, seconds = chosen(runs, path.stem, line)
            before = done.get(name, {"killed": False, "by": None, "tests": -1})
            if before["killed"] or before["tests"] == len(tests) or time.monotonic() > ends:
                continue
            by = killed(path, tree, tests, seconds)
            with out.open("a") as file:
                file.write(json.dumps({"mutant": name, "killed": by is not None, "by": by, "tests": len(tests)}) + "\n")
            print(f"{'killed' if by else 'SURVIVES'}  {name}  {by or len(tests)}", flush=True)
    rows = last_of(out).values()
    print(f"{sum(r['killed'] for r in rows)} of {len(rows)} mutants killed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
