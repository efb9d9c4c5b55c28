"""Uniform scaling: every layer narrower by the same factor, the control that any choice of widths has to beat.

Paper: none; width multipliers are Howard et al., "MobileNets", 2017, arXiv 1704.04861, section 3.3
Code:  none
Differs: with --pr_target the width is C − floor(C · p), at least --min_width; not the nearest to C · (1 − p).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kerf.compress.pruning import criteria, removal, schedules
from kerf.compress.pruning.recipe import Criterion, Recipe, Schedule
from kerf.compress.pruning.removal import Remove
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Units
from kerf.errors import BadInput


def leading(units: Units) -> Tensor:
    """The first channels score highest: which ones stay means nothing where their weights do not."""
    return -torch.arange(units.count, dtype=torch.double)


def _random(seed: int) -> Criterion:
    return criteria.random(torch.Generator().manual_seed(seed))


# from a seed: which channels stay, what becomes of the rest, when
WEIGHTS: dict[str, Callable[[int], tuple[Criterion, Remove, Schedule]]] = {
    "new": lambda seed: (leading, removal.renew(seed), schedules.narrow_first),
    "l1": lambda _: (criteria.l1, removal.cut, schedules.one_shot),
    "random": lambda seed: (_random(seed), removal.cut, schedules.one_shot),
}


def uniform_scaling(settings: Settings, *, weights: str = "new") -> Recipe:
    """Scales all widths by one factor, residual sums included, so that channels or MACs fall by the share asked for.

    weights: new (drawn anew, trained from scratch), or those of the channels that l1 or a random draw keeps.
    """
    if weights not in WEIGHTS:
        raise BadInput(f"weights is {weights!r}: expected one of {', '.join(WEIGHTS)}")
    criterion, remove, schedule = WEIGHTS[weights](settings.seed)
    scope = settings.uniform
    return Recipe(settings.channels(residual=True), criterion, scope, schedule, remove=remove)
