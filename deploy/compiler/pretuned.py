"""What the zoo's networks were tuned to, for machines that have measured nothing yet: a file per vector unit or GPU.

Lines of JSON, written by scripts/maintain/*pretune.py: a layer's problem, whether the dense kernels
were faster, the kernel and its configuration, where that is not the kernel's own first. The number of blocks need not
be the same: what is good for a layer at 50 % is good at 60 %, but for whether sparse kernels win, which is taken over
from nearby alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from tvm.target import Target

from kerf.deploy.compiler.choice import Choice
from kerf.kernels.backends import BY_NAME, backend_of
from kerf.kernels.config import Config
from kerf.kernels.cpu.machine import threads
from kerf.kernels.kernel import dense_twin
from kerf.kernels.problem import Problem


class Row(TypedDict):
    """A line of the file, and of its problem the number of blocks."""

    problem: dict[str, Any]
    threads: int
    dense: bool
    kernel: str
    config: Config
    nnzb: int


FOLDER = Path(__file__).parents[1] / "pretuned"
NEARBY = 0.1  # of all blocks


def file_of(target: Target) -> Path | None:
    """Where what is known of such targets is kept; None for those the project knows nothing of."""
    family = backend_of(target).family(target)
    return FOLDER / f"{family}.jsonl" if family else None


def known(p: Problem, target: Target) -> Choice | None:
    """What was best for ``p``, or for a layer that differs in its number of blocks alone; None if nothing is known."""
    path = file_of(target)
    if path is None or not path.is_file():
        return None
    rows = _read(path).get((_like(p), threads(target)), [])
    blocks = -(-p.out_channels // p.n) * p.in_channels if p.n else 1
    for row in sorted(rows, key=lambda row: abs(row["nnzb"] - p.nnzb)):
        if row["dense"] and abs(row["nnzb"] - p.nnzb) > NEARBY * blocks:
            continue
        problem, kernel = dense_twin(p) if row["dense"] else p, BY_NAME.get(row["kernel"])
        if kernel and kernel.refuses(problem, target) is None and row["config"] in kernel.configs(problem, target):
            return Choice(problem, row["kernel"], row["config"])
    return None


def line(p: Problem, choice: Choice, target: Target) -> str:
    """A row of the file."""
    row = {"problem": json.loads(p.to_json()), "threads": threads(target), "dense": choice.problem != p}
    return json.dumps({**row, "kernel": choice.kernel, "config": dict(choice.config)}, separators=(",", ":"))


def _like(p: Problem) -> Problem:
    """What layers have in common that take the same configuration: on a GPU, where they are found to the precision of
    its products, activation and residual do not count.
    """
    p = replace(p, nnzb=0)
    return p if p.precision == "f32" else replace(p, activation="none", residual=False, residual_type=None, middle=None)


@cache
def _read(path: Path) -> dict[tuple[Problem, int], list[Row]]:
    found = defaultdict(list)
    for text in path.read_text().splitlines():
        row = json.loads(text)
        p = Problem.from_json(json.dumps(row["problem"]))
        found[_like(p), row["threads"]].append({**row, "nnzb": p.nnzb})
    return dict(found)
