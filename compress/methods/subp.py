"""SUBP-style soft 1xN training: blocks that are hidden go on learning, and come back where they have grown.

Paper: Xiang et al., "SUBP: Soft Uniform Block Pruning for 1xN Sparse CNNs Multithreading Acceleration", NeurIPS 2023,
    arXiv 2310.06218 (the abstract and summaries were read)
Code:  github.com/JingyangXiang/SUBP (not read)
Differs: as there, every block row of a layer keeps equally many blocks and those that went may come back all through
    training; but blocks are ranked by their mean |w|, not by angular redundancy, and none is drawn at random. A hidden
    block has the gradient that it would have if it were there (straight through), so its weights move on and it comes
    back when they outgrow another's. What is hidden follows a cubic ramp (Zhu and Gupta, arXiv 1710.01878) over the
    first `ramp` of the steps; masks are chosen anew `choices` times an epoch until `settled` of the steps are over, so
    that what is left is trained as it stays. It begins with a trained network where there is one, and with `rearrange`
    channels are ordered by L1 before the first step.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kerf.compress.methods.movement import HIDDEN, cubic
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.masking import Shadows
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.units.weights import OneByN, WeightUnits
from kerf.errors import BadInput


def straight_through(weight: Tensor, mask: Tensor) -> Tensor:
    """M ∘ W, whose gradient with respect to W is that with respect to M ∘ W, wherever M is 0, too."""
    return weight + (weight * mask - weight).detach()


class Soft(Pressure):
    """The network computes with M ∘ W. M keeps, in every block row, equally many blocks with the largest mean |w|."""

    def __init__(self, ramp: float, settled: float, choices: int, multiple: int, rearrange: bool):
        if not 0 < ramp <= settled <= 1 or choices < 1 or multiple < 1:
            given = f"ramp {ramp:g}, settled {settled:g}, choices {choices}, row_multiple {multiple}"
            raise BadInput(f"{given}: expected 0 < ramp <= settled <= 1, and at least 1 of the others")
        self.ramp, self.settled, self.choices, self.rearrange = ramp, settled, choices, rearrange
        self.scope = partial(scopes.in_rows, multiple=multiple)
        self.shadows = Shadows(self._value)

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], plan: Plan) -> None:
        if self.rearrange:  # a resumed run's weights, in the order that they have, come after it
            orders = surgery.l1_orders(model, graph)
            surgery.permute(model, graph, dict(zip(orders, distributed.from_first(list(orders.values())))))
        self.units, self.plan = units, plan
        self.last = min(round(self.settled * plan.steps), plan.steps - 1)  # step at which masks settle
        self.masks = {u.path: torch.ones_like(u.weight(), dtype=torch.bool) for u in units}
        self.keep = {u.path: torch.ones(u.count, dtype=torch.bool, device=u.sizes.device) for u in units}
        self.shadows.attach(model, self.masks)
        self.attached = True

    def _value(self, path: str, weight: Tensor) -> Tensor:
        return straight_through(weight, self.masks[path])

    def gone(self, step: int) -> float:
        """The share that is hidden from that step on, if masks are chosen at it."""
        if step >= self.last:
            return self.plan.sparsity
        return cubic(step, round(self.ramp * self.plan.steps), 0, 0, 0.0, self.plan.sparsity)

    def chooses(self, step: int) -> bool:
        """Whether masks are chosen anew at the beginning of that step."""
        return step == self.last or (step < self.last and step % max(1, self.plan.each // self.choices) == 0)

    @torch.no_grad()
    def _choose(self, step: int) -> None:
        keep = self.scope([criteria.l1(u) for u in self.units], self.units, self.gone(step))
        for unit, kept in zip(self.units, distributed.from_first(keep)):
            self.keep[unit.path].copy_(kept)
            self.masks[unit.path].copy_(unit.mask(self.keep[unit.path]))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        if self.chooses(step):
            self._choose(step)
        return task(model, x, y)

    def score(self, unit: WeightUnits) -> Tensor:
        """Mean |w|, and far below it what the masks hide."""
        score = criteria.l1(unit)
        return score - HIDDEN * ~self.keep[unit.path] if self.attached else score

    def fold(self, model: nn.Module) -> None:
        """Without the masks; what they hide is zeroed behind it."""
        self.shadows.detach()
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        return dict(self.keep)

    def restore(self, state: dict[str, Tensor]) -> None:
        for unit in self.units:
            self.keep[unit.path].copy_(state[unit.path])
            self.masks[unit.path].copy_(unit.mask(self.keep[unit.path]))

    def report(self, model: nn.Module) -> str:
        left, total = sum(int(k.sum()) for k in self.keep.values()), sum(u.count for u in self.units)
        return f"{left} of {total} blocks are kept ({left / total:.1%})"


def subp(
    settings: Settings, *, ramp: float = 0.5, settled: float = 0.75, choices: int = 10, row_multiple: int = 1
) -> Recipe:
    """Trains with more and more blocks hidden, as many in every block row; hidden ones learn on and may come back.

    ramp, settled: shares of the steps until all that is to go is hidden, and until what is hidden stays so; choices: of
    what is hidden, per epoch; row_multiple: every block row keeps a multiple of it.
    """
    soft = Soft(ramp, settled, choices, row_multiple, settings.rearrange)
    return Recipe(
        OneByN(settings.n, settings.full), soft.score, soft.scope, schedules.prune_while_training, pressure=soft
    )
