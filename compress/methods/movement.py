"""Movement pruning: scores learned while training; weights that move towards zero lose theirs.

Paper: Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv 2005.07683;
    Lagunas et al., "Block Pruning For Faster Transformers", EMNLP 2021, arXiv 2109.04838
Code:  github.com/huggingface/block_movement_pruning, github.com/huggingface/nn_pruning
Differs: convolutions in place of transformers, so there are no heads or feed-forward pairs: weights, and 1×N blocks in
    place of 32×32. Warm-up is a share of the phase; the learning rate follows the run's own schedule. Weights learn by
    SGD, scores by Adam as there. Exactly the share asked for goes: of every layer with hard
    movement, of all layers together with soft and block movement. Their one threshold for all scores is, at every step,
    the one that leaves the share v(t), where the authors raise it to 0.1 whatever that leaves; a layer keeps at least
    one unit. The penalty λ grows with what has gone; its default is a hundredth of theirs in soft movement, for layers
    that have so many fewer weights. Hard movement removes floor(count · (1 − v)) of a layer, theirs keeps int(v ·
    count). L0 and 2:4 are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.masking import Shadows
from kerf.compress.training.pressure import Moments, ParameterGroup, Plan, Pressure, Task
from kerf.compress.units.weights import Granularity, OneByN, Weight, WeightUnits
from kerf.errors import BadInput

HIDDEN = 1e9  # more than any score: what a mask hides goes before all that it leaves


def cubic(t: int, steps: int, warm: float, final: float, start: float, end: float) -> float:
    """`start` for `warm` steps, `end` in the last final · warm; between them end + (start − end) (1 − progress)³."""
    if t <= warm:
        return start
    if t > steps - final * warm:
        return end
    return end + (start - end) * (1 - (t - warm) / (steps - (final + 1) * warm)) ** 3


def largest(scores: Tensor, count: int) -> Tensor:
    """bool (n,), True at the `count` ≥ 1 largest; of equal ones, the later stay, as in scopes."""
    threshold = scores.kthvalue(len(scores) - count + 1).values
    keep = scores > threshold
    equal = (scores == threshold).nonzero().flatten()
    keep[equal[len(equal) - (count - int(keep.sum())) :]] = True
    return keep


def straight(weight: Tensor, score: Tensor, keep: Tensor, unit: WeightUnits) -> Tensor:
    """W' = M ∘ W. Backward, M is the identity of the scores: ∂L/∂S = Σ over the unit of ∂L/∂W' ∘ W."""
    through = unit.mask(score)
    return weight * (unit.mask(keep) + (through - through.detach())).to(weight.dtype)


class Movement(Pressure):
    """Scores S, from zero, one per unit; the network computes with M(S) ∘ W. M keeps the share v(t) with the largest S.

    That share is of each layer, or of all together where they are ``pooled``: then M is S > τ(t), with one threshold
    for all. λ(t) times the mean over layers of the mean of σ(S) is added to the loss.
    """

    def __init__(self, pooled: bool, rate: float, warm: float, final: float, penalty: float = 0.0):
        self.pooled, self.rate, self.warm, self.final, self.penalty = pooled, rate, warm, final, penalty
        self.scope: Scope = scopes.overall if pooled else scopes.local
        self.shadows = Shadows(self._value)

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], plan: Plan) -> None:
        self.units, self.plan = units, plan
        self.index = {u.path: i for i, u in enumerate(units)}
        device = next(model.parameters()).device
        self.keep = [torch.ones(u.count, dtype=torch.bool, device=device) for u in units]
        self.s = nn.ParameterList(torch.zeros(u.count, device=device) for u in units)
        self.moments = Moments(dict(self.s.named_parameters()))
        model.add_module("movement", self.s)
        self.shadows.attach(model, self.index)
        self.attached = True

    def _value(self, path: str, weight: Tensor) -> Tensor:
        i = self.index[path]
        return straight(weight, self.s[i], self.keep[i], self.units[i])

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"movement.{i}" for i in range(len(self.s))]
        return [ParameterGroup(names, self.rate / self.plan.peak, momentum=0.0, nesterov=False, weight_decay=0.0)]

    def gone(self, step: int) -> float:
        """1 − v(t): the share that is hidden at that step, which ends at what is to be removed."""
        return cubic(step, self.plan.steps, self.warm * self.plan.steps, self.final, 0.0, self.plan.sparsity)

    @torch.no_grad()
    def _choose(self, step: int) -> None:
        gone = self.gone(step)
        if not self.pooled:
            for s, keep in zip(self.s, self.keep):
                keep.copy_(largest(s.detach(), max(1, len(s) - int(len(s) * gone + 1e-9))))
            return
        sizes = [len(s) for s in self.s]
        joined = torch.cat([s.detach() for s in self.s])
        for first, s in zip(torch.tensor([0, *sizes]).cumsum(0).tolist(), self.s):
            joined[first + len(s) - 1 - int(s.detach().flip(0).argmax())] = torch.inf  # a layer's best stays
        keep = largest(joined, max(len(sizes), len(joined) - int(len(joined) * gone + 1e-9)))
        for own, part in zip(self.keep, keep.split(sizes)):
            own.copy_(part)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        self._choose(step)
        loss, logits = task(model, x, y)
        if self.penalty and (gone := self.gone(step)):
            weight = self.penalty * gone / self.plan.sparsity
            loss = loss + weight * torch.stack([s.sigmoid().mean() for s in self.s]).mean()
        return loss, logits

    def edit_gradients(self, model: nn.Module, step: int) -> None:
        for name, s in self.s.named_parameters():
            self.moments.direct(name, s, step)

    def score(self, unit: WeightUnits) -> Tensor:
        """S, and far below it what the masks of the last step hide; before there are any, mean |w|."""
        if not self.attached:
            return criteria.l1(unit)
        i = self.index[unit.path]
        return self.s[i].detach().double() - HIDDEN * ~self.keep[i]

    def fold(self, model: nn.Module) -> None:
        """Without the masks; what they hide is zeroed behind it."""
        if self.attached:
            self.shadows.detach()
            del model.movement
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        return self.moments.state() | {f"keep.{i}": k for i, k in enumerate(self.keep)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.moments.restore(state)
        for i, keep in enumerate(self.keep):
            keep.copy_(state[f"keep.{i}"])

    def report(self, model: nn.Module) -> str:
        left, total = sum(int(k.sum()) for k in self.keep), sum(u.count for u in self.units)
        return f"{left} of {total} units are kept ({left / total:.1%})"


def movement(settings: Settings, *, score_rate: float = 1e-2, warm: float = 0.1) -> Recipe:
    """Removes, in every layer, weights whose learned scores are smallest, more and more while training.

    score_rate: highest learning rate of scores; warm: share of the steps before the first weight goes.
    """
    return _recipe(Weight(settings.full), Movement(False, score_rate, warm, 2.0))


def soft_movement(settings: Settings, *, score_rate: float = 1e-2, warm: float = 0.1, penalty: float = 4.0) -> Recipe:
    """Removes weights of all layers whose learned scores are below a threshold that rises until enough have gone.

    penalty: λ at the end, of mean σ(S); otherwise as movement.
    """
    return _recipe(Weight(settings.full), Movement(True, score_rate, warm, 2.0, penalty))


def block_movement(settings: Settings, *, score_rate: float = 1e-2, warm: float = 0.05, penalty: float = 1.0) -> Recipe:
    """Removes 1×N blocks of all layers whose learned scores are smallest; otherwise as soft_movement."""
    return _recipe(OneByN(settings.n, settings.full), Movement(True, score_rate, warm, 4.0, penalty))


def _recipe(granularity: Granularity, movement: Movement) -> Recipe:
    if not 0 <= movement.warm * (1 + movement.final) < 1:  # else the first weight would go with the last, or behind all
        most = 1 / (1 + movement.final)
        raise BadInput(f"warm is {movement.warm:g}: expected a share of the steps from 0 to below {most:.2f}")
    if movement.rate <= 0 or movement.penalty < 0:
        raise BadInput(f"score_rate {movement.rate:g}, penalty {movement.penalty:g}: expected above 0, and 0 or more")
    return Recipe(
        granularity,
        movement.score,
        movement.scope,
        schedules.prune_while_training,
        pressure=movement,
    )
