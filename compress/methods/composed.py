"""A method put together on the command line: any criterion, granularity, schedule and scope that fit each other.

Names of the table of methods (compress/methods) are published combinations of the same parts.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from kerf.compress.measures.curvature import Numbers, fisher, hutchinson
from kerf.compress.measures.feature_maps import Activations
from kerf.compress.methods.dsc import Annealing
from kerf.compress.methods.ezcrop import spectral_tail
from kerf.compress.methods.hessian import Curvature, Estimate
from kerf.compress.methods.hrank import rank
from kerf.compress.methods.lookahead import Lookahead
from kerf.compress.pruning import criteria, schedules, scopes
from kerf.compress.pruning.recipe import Criterion, Observe, Recipe, nothing
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Filter, Granularity, OneByN, Weight
from kerf.errors import BadInput

IMAGES = 640  # that a criterion of activations is shown


class Score(NamedTuple):
    criterion: Criterion
    observe: Observe = nothing


@dataclass(frozen=True)
class Kind:
    """A criterion of the table. ``channels``, ``weights``: whether it is defined for channels, for parts of weights."""

    make: Callable[[Settings], Score]
    channels: bool = True
    weights: bool = True
    scaled: bool = False  # asks for batch norms behind the channels
    compares: bool = True  # between layers
    steady: bool = True  # a function of the present weights, which may be asked again and again


def _seen(of: Curvature | Lookahead | Activations) -> Score:
    return Score(of.score, of.observe)


def _curved(estimate: Estimate, settings: Settings) -> Score:
    return _seen(Curvature(estimate, Numbers(images=256, probes=16, damping=1e-3, seed=settings.seed)))


CRITERIA: dict[str, Kind] = {
    "l1": Kind(lambda s: Score(criteria.l1)),
    "l2": Kind(lambda s: Score(criteria.l2)),
    "random": Kind(lambda s: Score(criteria.random(torch.Generator().manual_seed(s.seed))), steady=False),
    "bn_scale": Kind(lambda s: Score(criteria.bn_scale), weights=False, scaled=True),
    "rank": Kind(lambda s: _seen(Activations(rank, IMAGES)), weights=False, scaled=True, compares=False, steady=False),
    "spectral_tail": Kind(
        lambda s: _seen(Activations(spectral_tail, IMAGES)), weights=False, scaled=True, steady=False
    ),
    "lookahead": Kind(lambda s: _seen(Lookahead(batch_norm=True)), channels=False, steady=False),
    "fisher": Kind(lambda s: _curved(fisher, s), channels=False, steady=False),
    "hutchinson": Kind(lambda s: _curved(hutchinson, s), channels=False, steady=False),
}

GRANULARITIES: dict[str, Callable[[Settings, bool], Granularity]] = {
    "weight": lambda s, scaled: Weight(s.full),
    "1xN": lambda s, scaled: OneByN(s.n, s.full),
    "filter": lambda s, scaled: Filter(s.full),
    "channel": lambda s, scaled: s.channels(scaled=scaled),
}

SCOPES = ("local", "global")
SCHEDULES = ("one_shot", "before_training", "annealed")
PARTS: dict[str, tuple[str, ...]] = {
    "criterion": tuple(CRITERIA),
    "granularity": tuple(GRANULARITIES),
    "schedule": SCHEDULES,
    "scope": SCOPES,
}

COMPOSED = "composed"  # what a run of parts calls its method


def composed(
    settings: Settings,
    *,
    criterion: str = "l1",
    granularity: str = "1xN",
    schedule: str = "one_shot",
    scope: str = "local",
) -> Recipe:
    """Removes the units of `granularity` with the smallest scores by `criterion`, of each layer or of all together.

    schedule: one_shot prunes the trained network, in --prune_steps steps, and fine-tunes; before_training prunes first;
    annealed masks more and more while training, as dsc1 and dsc2. Raises ValueError for parts that do not fit.
    """
    for name, value in (
        ("criterion", criterion), ("granularity", granularity), ("schedule", schedule), ("scope", scope)
    ):  # fmt: skip
        if value not in PARTS[name]:
            raise BadInput(f"unknown --{name} {value}: expected one of {', '.join(PARTS[name])}")
    kind, narrow = CRITERIA[criterion], granularity == "channel"
    if not (kind.channels if narrow else kind.weights):
        fits = ", ".join(n for n, k in CRITERIA.items() if (k.channels if narrow else k.weights))
        raise BadInput(f"criterion {criterion} is not defined for granularity {granularity}: those are {fits}")
    if scope == "global" and not kind.compares:
        raise BadInput(f"criterion {criterion} grows with the size of a layer's maps: give --scope local")
    if schedule == "annealed" and not kind.steady:
        raise BadInput(f"schedule annealed scores in every round, from weights alone; criterion {criterion} cannot")
    rearrange = settings.rearrange and granularity == "1xN"
    if schedule == "annealed" and rearrange:
        raise BadInput("schedule annealed forms blocks before --rearrange would order their filters: leave one out")
    score, units = kind.make(settings), GRANULARITIES[granularity](settings, kind.scaled)
    within = _scope(settings, narrow, scope)
    if schedule == "annealed":
        counted = scope == "global" and not (narrow and settings.by_macs)
        return Annealing(score.criterion, within, 20, 10.0, counted=counted, weights=not narrow).recipe(units)
    times = schedules.one_shot if schedule == "one_shot" else schedules.narrow_first
    return Recipe(units, score.criterion, within, times, rearrange, observe=score.observe)


DEFAULT_PARTS = {name: str(p.default) for name, p in inspect.signature(composed).parameters.items() if name in PARTS}


def _scope(settings: Settings, narrow: bool, scope: str) -> Scope:
    if narrow:
        return settings.uniform if scope == "local" else settings.pooled
    return scopes.local if scope == "local" else partial(scopes.overall, least=1)
