"""The table of methods in words, read off the recipes themselves and the heads of their files."""

import inspect
import re
from dataclasses import asdict, dataclass
from typing import Any

from kerf.compress.methods import METHODS
from kerf.compress.pruning.recipe import Recipe, Schedule
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import NOTHING
from kerf.compress.units import weights
from kerf.compress.units.channels import Channel
from kerf.compress.units.weights import Granularity
from kerf.errors import BadInput

UNITS = {
    weights.OneByN: "1xN blocks",
    weights.Weight: "weights",
    weights.Filter: "filters' weights",
    weights.Patterns: "kernels' entries",
}
SCOPES = {
    "local": "each layer",
    "patterned": "each layer",
    "uniform_macs": "each layer",
    "overall": "all layers",
    "greedy_macs": "all layers",
}


@dataclass(frozen=True)
class Row:
    name: str
    removes: str
    scope: str  # within what units compete
    when: str
    needs: str  # beyond the weights; that is what it costs, too
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
    recipe = method(Settings(by_macs=True))
    own = [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    numbers = {p.name: p.default for p in own}
    head = inspect.cleandoc(inspect.getmodule(method).__doc__ or "")
    moment = when(recipe.schedule)
    return Row(
        name,
        "nothing" if moment == "never" else removes(recipe.granularity),
        scope(recipe.scope),
        moment,
        needs(recipe, numbers),
        "style" if "-style" in head.partition("\n")[0] else "faithful",
        paper(head),
        " ".join((inspect.getdoc(method) or "").split()),
        head,
        numbers,
    )


def removes(of: Granularity) -> str:
    return "channels" if isinstance(of, Channel) else UNITS[type(of)]


def scope(of: Scope) -> str:
    return SCOPES.get(getattr(getattr(of, "func", of), "__name__", ""), "its own rule")


def when(schedule: Schedule) -> str:
    """Read off the phases of a run that trains a network and prunes it."""
    phases = list(schedule(Budget(0.5, 10, 10)))
    cut = next((i for i, phase in enumerate(phases) if phase.sparsity), None)
    if cut is None:
        return "never"
    if not any(phase.pressure for phase in phases[:cut]):
        return "after training" if any(phase.epochs for phase in phases[:cut]) else "before training"
    return "mid-training" if phases[cut].epochs else "while training"


def needs(recipe: Recipe, numbers: dict[str, Any]) -> str:
    asked = ["own training"] if recipe.pressure is not NOTHING else []
    if "images" in numbers:
        asked.append(f"{numbers['images']} images")
    return ", ".join(asked) or "-"


def paper(head: str) -> str:
    """First author and number of the first entry of `Paper:`."""
    found = re.search(r"^Paper:(.*?)(?=^\w+:|\Z)", head, re.MULTILINE | re.DOTALL)
    entry = " ".join(found[1].split()).partition(";")[0] if found else ""
    number = re.search(r"arXiv \d{4}\.\d{4,5}", entry)
    authors, _, rest = entry.partition(",")
    if re.match(r"\s*[A-Z]\w+ and [A-Z]\w+,", rest):
        authors += " et al."
    return f"{authors}, {number[0]}" if number else entry or "-"


def text(value: object) -> str:
    return "auto" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
