"""Of the code that measurements were made with: those of other code say nothing about this one.

Hashed is what changes code: the syntax tree without docstrings, so that comments, docstrings and layout count for
nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def code_version(backend: str) -> str:
    """Of the kernels of a backend, "cpu" or "cuda"; what all share counts for the first, which is older."""
    found = sorted(HERE.rglob("*.py"))
    if backend == "cpu":
        return digest(p for p in found if "cuda" not in p.relative_to(HERE).parts)
    parts = {p: p.relative_to(HERE).parts for p in found}
    return digest(p for p in found if parts[p][0] == backend and "host" not in parts[p])  # host/ only checks kernels


def digest(files: Iterable[Path]) -> str:
    """Of Python files, in order."""
    return sha256("\0".join(_code(path.read_text()) for path in files).encode()).hexdigest()[:12]


def _code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
