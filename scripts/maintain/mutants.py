"""Mutation test of methods and of the pruning core: a sample of small changes, each run against the tests it concerns.

Launch:    python scripts/maintain/mutants.py --each 2 --out runs/mutants.jsonl [--only csgd dmcp] [--minutes 2]
Hardware:  any CPU; half a minute of one core for a mutant. Run it again to go on; finished mutants stay.
Expected:  a line per mutant (file, line, change, killed or not, by which test), and the share that is killed.

A mutant is one changed operator, comparison, constant, condition or call that is left out, drawn with a seed.
It is killed where a test that imports from the file fails, or one of those over the table of methods for its name; a
run that does not end counts as killed. Each runs in a process forked behind the imports of torch and pytest.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType

CORE = ("criteria", "recipe", "removal", "run", "schedules", "scopes")  # of compress/pruning
TABLE = ("test_methods.py", "test_channel_methods.py", "test_cores.py")  # in tests/compress/methods
OF_CORE = ("tests/compress/pruning", "tests/compress/methods/test_channel_methods.py")
LIMIT = 100  # seconds of a mutant's tests
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


def drawn(path: Path, count: int, seed: int) -> list[tuple[str, ast.Module]]:
    """(name, tree) of `count` mutants of a file."""
    tree = ast.parse(path.read_text())
    found = list(dict.fromkeys((id(n), kind) for n, kind in places(tree)))
    at = {key: (n, kind) for n, kind in places(tree) if (key := (id(n), kind))}
    mutants = []
    for key in random.Random(f"{path.name} {seed}").sample(found, min(count, len(found))):
        node, kind = at[key]
        before = ast.unparse(node).splitlines()[0]
        kept = dict(node.__dict__)  # not copies: other mutants are nodes within
        change(node, kind)
        after = ast.unparse(node).splitlines()[0]
        name = f"{path.stem}:{getattr(node, 'lineno', 0)} {kind}: {before[:60]} -> {after[:60]}"
        mutants.append((name, copy.deepcopy(tree)))
        node.__dict__.update(kept)
    return mutants


class Instead(importlib.abc.MetaPathFinder):
    """Imports one module from a changed tree."""

    def __init__(self, module: str, path: Path, code: CodeType):
        self.module, self.path, self.code = module, path, code

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        loader = importlib.machinery.SourceFileLoader(name, str(self.path))
        loader.get_code = lambda _: self.code  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def tests_of(root: Path, path: Path) -> list[list[str]]:
    """Arguments of pytest, one list after the other until one fails."""
    if path.parent.name == "pruning":
        return [[str(root / place)] for place in OF_CORE if (root / place).exists()]
    tests = sorted((root / "tests/compress").rglob("test_*.py"))
    named = [str(p) for p in tests if f"methods.{path.stem} import" in p.read_text() or p.stem == f"test_{path.stem}"]
    table = [str(p) for name in TABLE if (p := root / "tests/compress/methods" / name).is_file()]
    word = {"greg": "greg", "dsc": "dsc", "movement": "movement"}.get(path.stem, path.stem)
    return [*([named] if named else []), [*table, "-k", word]]


def killed(root: Path, path: Path, tree: ast.Module) -> str | None:
    """Which test fails, "time" where none ends; None where the mutant survives."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        signal.alarm(LIMIT)
        os.write(write, (tested(root, path, tree) or "").encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        answer = told.read()
    _, status = os.waitpid(child, 0)
    return answer or ("time" if os.WIFSIGNALED(status) else None)


def tested(root: Path, path: Path, tree: ast.Module) -> str | None:
    import pytest

    class Failures:
        first: str | None = None

        def pytest_runtest_logreport(self, report: object) -> None:
            if getattr(report, "failed", False) and not self.first:
                self.first = getattr(report, "nodeid", "")

        def pytest_collectreport(self, report: object) -> None:
            self.pytest_runtest_logreport(report)

    code = compile(ast.fix_missing_locations(tree), str(path), "exec")
    module = "kerf." + ".".join(path.relative_to(root).with_suffix("").parts)
    sys.meta_path.insert(0, Instead(module, path, code))
    for arguments in tests_of(root, path):
        seen = Failures()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            result = pytest.main(
                ["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={root}", *arguments], plugins=[seen]
            )
        if result not in (0, 5):  # 5: none was collected
            return seen.first or f"exit {int(result)}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[2], help="the checkout that `import kerf` finds"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of files, without .py")
    parser.add_argument("--each", type=int, default=2, help="mutants of every file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/mutants.jsonl"))
    a = parser.parse_args()
    ends, out, root = time.monotonic() + 60 * a.minutes, a.out.resolve(), a.root.resolve()
    done = {json.loads(line)["mutant"] for line in out.read_text().splitlines()} if out.is_file() else set()
    os.chdir(root)
    import pytest  # noqa: F401 - what every child needs, once
    import torch

    torch.set_num_threads(1)
    methods = [
        p for p in sorted((root / "compress/methods").glob("*.py")) if p.name not in ("__init__.py", "published.py")
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in [*methods, *(root / "compress/pruning" / f"{name}.py" for name in CORE)]:
        for name, tree in drawn(path, a.each, a.seed) if path.stem in a.only or not a.only else []:
            if name in done or time.monotonic() > ends:
                continue
            by = killed(root, path, tree)
            with out.open("a") as file:
                file.write(json.dumps({"mutant": name, "killed": by is not None, "by": by}) + "\n")
            print(f"{'killed' if by else 'SURVIVES'}  {name}  {by or ''}", flush=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    print(f"{sum(r['killed'] for r in rows)} of {len(rows)} mutants killed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
