"""The table of methods in words: its rows, the heads of their files, and when each removes, read off its schedule."""

from dataclasses import asdict, dataclass
from typing import Any

from kerf.compress.methods import METHODS
from kerf.compress.pruning.recipe import Recipe, Schedule
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import OneByN
from kerf.errors import BadInput


@dataclass(frozen=True)
class Row:
    name: str
    removes: str
    scope: str  # within what units compete
    when: str
    needs: str  # beyond the weights; that is what it costs, too
    brings: str  # once deployed: "size" alone where zeros are scattered, which no kernel here skips
    status: str  # faithful to what was published, or in its style
    paper: str  # authors and arXiv number
    does: str  # its docstring
    head: str  # of its file
    numbers: dict[str, Any]  # of its own, and their defaults


def rows() -> list[Row]:
    return [row(name) for name in METHODS]


def describe(name: str | None = None) -> dict[str, Any]:
    """{methods: rows as plain values}, or the row of one. Raises ValueError for a name that is not in the table."""
    return asdict(row(name)) if name else {"methods": [asdict(found) for found in rows()]}


def row(name: str) -> Row:
    """Raises ValueError for a name that is not in the table."""
    if name not in METHODS:
        raise BadInput(f"no method {name}: expected one of {', '.join(METHODS)}")
    method = METHODS[name]
    numbers = method.numbers
    words = {"training": "own training", "images": f"{numbers.get('images')} images"}
    recipe = method(Settings(by_macs=True))
    return Row(
        name,
        method.removes,
        method.scope,
        when(recipe.schedule),
        ", ".join(words[need] for need in method.needs) or "-",
        "nothing" if method.target == "nothing" else "size, speed" if faster(recipe) else "size",
        "faithful" if method.faithful else "style",
        method.paper,
        " ".join(method.does.split()),
        method.head,
        numbers,
    )


def faster(recipe: Recipe) -> bool:
    """Whether kernels here skip what goes: channels and 1×N blocks; single weights and patterns within kernels stay."""
    return recipe.cuts or isinstance(recipe.granularity, OneByN)


def when(schedule: Schedule) -> str:
    """Read off the phases of a run that trains a network and prunes it."""
    phases = list(schedule(Budget(0.5, 10, 10)))
    cut = next((i for i, phase in enumerate(phases) if phase.sparsity), None)
    if cut is None:
        return "never"
    if not any(phase.pressure for phase in phases[:cut]):
        return "after training" if any(phase.epochs for phase in phases[:cut]) else "before training"
    return "mid-training" if phases[cut].epochs else "while training"


def text(value: object) -> str:
    return "auto" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
