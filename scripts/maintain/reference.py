"""Writes docs/reference.md from the tables of methods and kernels; tests/test_docs.py compares.

Launch:    python scripts/maintain/reference.py
Hardware:  any.
Expected:  docs/reference.md, unchanged unless a table or the head of a file in it changed.
"""

import inspect
from pathlib import Path

from kerf.compress.command import method_table
from kerf.compress.methods import METHODS
from kerf.kernels import cuda
from kerf.kernels.backends import CPU

READING = """
Scope: within what units compete for their place. Needs: beyond the weights, and what it costs beside fine-tuning; own
training adds something to every step. When: of one course of training; mid-training methods train under a pressure
first and fine-tune afterwards. Brings: what a deployed network gains; zeros that lie scattered, single weights and
patterns within kernels, make files smaller and nothing faster here. Status: style means that parts were filled in, as
its Differs says.

Parts can be put together without a name: `--criterion --granularity --schedule --scope`, see `imagenet.py --help`.
"""
FILE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"


def text() -> str:
    lines = ["# Reference", "", "Written by `python scripts/maintain/reference.py` from the tables; edit those.", ""]
    lines += ["## Methods", "", "`python imagenet.py --method NAME --set NUMBER=VALUE …`", ""]
    columns = ("name", "removes", "scope", "when", "needs", "brings", "status", "paper")
    lines += [f"| {' | '.join(columns)} |", "|" + "-|" * len(columns)]
    lines += [f"| {' | '.join(getattr(row, column) for column in columns)} |" for row in method_table.rows()]
    for part in READING.split("\n\n"):
        lines += ["", " ".join(part.split())]
    lines.append("")
    for name, method in METHODS.items():
        head, *rest = method.head.split("\n\n")
        own = method.numbers
        lines += [f"### {name}", "", " ".join(head.split()), ""]
        for part in rest:
            lines += [f"    {line}" for line in part.splitlines()] + [""]
        if own:
            lines += [
                "Numbers of its own: " + ", ".join(f"`{name}={default}`" for name, default in own.items()) + ".",
                "",
            ]
        lines += [" ".join(method.does.split()), ""]
    lines += ["## Kernels", "", "In order of preference; each races for every layer that it does not refuse.", ""]
    for kernel in (*CPU.kernels, *cuda.KERNELS):
        head, *rest = inspect.cleandoc(kernel.__doc__).split("\n\n")
        lines += [f"### {kernel.name}", "", " ".join(head.split()), "", *(" ".join(part.split()) for part in rest), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    import _page

    raise SystemExit(_page.written("reference", __doc__, FILE, text))
