"""Direct-sparsity-control-style: between steps of training only the largest are kept, fewer by an annealing schedule.

Paper: Guo et al., "Network Pruning via Annealing and Direct Sparsity Control", IJCNN 2021, arXiv 2002.04301
Code:  none; the schedule is that of the last author's feature selection code
Differs: filled in, the paper's text not having been read: the key of channels is |γ|, all layers are one pool, μ is 10,
    and the schedule's N is the first half of the epochs, in 20 rounds. Ties go by index, so that exactly as many are
    left as asked for. Weights that went are masked until the rounds are over, then zeroed; channels are cut at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules, scopes
from kerf.compress.pruning.recipe import Criterion, Recipe
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.masking import ChannelMasks, Shadows
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.units.weights import Granularity, Units, Weight
from kerf.errors import BadInput

POOLS = ("global", "layer")


def left(e: int, whole: float, target: float, rounds: int, mu: float) -> float:
    """M_e = K + (M − K) max(0, (N − 2e) / (2eμ + N)), for e = 0 … N: K from the middle on."""
    return target + (whole - target) * max(0.0, (rounds - 2 * e) / (2 * e * mu + rounds))


class Annealing(Pressure):
    """What has gone scores −∞, and so never comes back."""

    def __init__(self, key: Criterion, scope: Scope, rounds: int, mu: float, *, counted: bool, weights: bool):
        if rounds < 2 or mu < 0:  # in a single one nothing goes before the cut, behind which no round trains
            raise BadInput(f"{rounds} rounds, mu {mu:g}: expected at least 2, and 0 or more")
        self.key, self.scope, self.rounds, self.mu = key, scope, rounds, mu
        self.counted, self.weights = counted, weights
        self.channels, self.shadows = ChannelMasks(), Shadows(self._masked)

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[Any], plan: Plan) -> None:
        self.units, self.plan, self.round = units, plan, 0
        self.index = {u.path: i for i, u in enumerate(units)}
        if self.weights:
            self.kept = [torch.ones(u.count, dtype=torch.bool, device=u.sizes.device) for u in units]
            self.shadows.attach(model, self.index)
        else:
            self.channels.attach(model, graph, units, plan.cut)
            self.kept = self.channels.kept
        self.attached = True

    def _masked(self, path: str, weight: Tensor) -> Tensor:
        i = self.index[path]
        return weight * self.units[i].mask(self.kept[i])

    def _keep(self, kept: Sequence[Tensor]) -> None:
        if not self.weights:
            self.channels.keep(kept)
        for mask, new in zip(self.kept, kept):
            mask.copy_(new)

    def share(self, e: int) -> float:
        """What is to be gone after round e; of things that are counted, a whole number of them."""
        if not self.counted:
            return 1 - left(e, 1.0, 1 - self.plan.sparsity, self.rounds, self.mu)
        whole = sum(u.count + u.gone for u in self.units)
        target = whole - int(whole * self.plan.sparsity + 1e-9)
        return (whole - int(left(e, whole, target, self.rounds, self.mu) + 1e-9)) / whole

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        e = step * self.rounds // self.plan.steps
        if e > self.round:
            self.round = e
            keep = self.scope([self.score(u) for u in self.units], self.units, self.share(e))
            if self.weights:
                self._keep(keep)
            else:
                self.units = self.channels.drop(self.units, keep)
                self.kept = self.channels.kept
        return task(model, x, y)

    def score(self, unit: Units) -> Tensor:
        score = self.key(unit)
        return score.masked_fill(~self.kept[self.index[unit.path]], -torch.inf) if self.attached else score

    def fold(self, model: nn.Module) -> None:
        """Without the masks; what they hide is zeroed or cut behind it."""
        self.channels.detach()
        self.shadows.detach()
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        own = {"own": torch.tensor([self.round])}
        return own | {str(i): kept for i, kept in enumerate(self.kept)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.round = int(state["own"][-1])
        self._keep([state[str(i)].to(kept.device) for i, kept in enumerate(self.kept)])

    def report(self, model: nn.Module) -> str:
        total = sum(u.count + u.gone for u in self.units)
        return f"round {self.round} of {self.rounds}, {sum(int(k.sum()) for k in self.kept)} of {total} are kept"

    def recipe(self, granularity: Granularity) -> Recipe:
        """With units of `granularity`: channels, or parts of weights."""
        return Recipe(
            granularity,
            self.score,
            self.scope,
            schedules.press_then_prune,
            pressure=self,
        )


def _check(pool: str) -> bool:
    """Whether all layers are one pool."""
    if pool not in POOLS:
        raise BadInput(f"pool is {pool!r}: expected one of {', '.join(POOLS)}")
    return pool == "global"


def dsc1(settings: Settings, *, mu: float = 10.0, rounds: int = 20, pool: str = "global") -> Recipe:
    """Keeps the weights with the largest |w|, of all layers together, fewer round by round while training.

    mu: how early most go; rounds: the schedule's N; pool: global, or layer for the same share of each.
    """
    scope = scopes.overall if _check(pool) else scopes.local
    annealing = Annealing(criteria.l1, scope, rounds, mu, counted=_check(pool), weights=True)
    return annealing.recipe(Weight(settings.full))


def dsc2(settings: Settings, *, mu: float = 10.0, rounds: int = 20, pool: str = "global") -> Recipe:
    """Keeps the channels with the largest |γ|, of all layers together, fewer round by round; then as dsc1."""
    scope = settings.pooled if _check(pool) else settings.uniform
    counted = _check(pool) and not settings.by_macs
    annealing = Annealing(criteria.bn_scale, scope, rounds, mu, counted=counted, weights=False)
    return annealing.recipe(settings.channels(scaled=True))
