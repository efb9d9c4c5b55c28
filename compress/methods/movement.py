"""Movement pruning: scores learned while training; weights that move towards zero lose theirs.

Paper: Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv 2005.07683;
    Lagunas et al., "Block Pruning For Faster Transformers", EMNLP 2021, arXiv 2109.04838
Code:  github.com/huggingface/block_movement_pruning, github.com/huggingface/nn_pruning
Differs: convolutions in place of transformers, so there are no heads or feed-forward pairs: weights, and 1×N blocks in
    place of 32×32. Warm-up is a share of the phase; the learning rate follows the run's own schedule. Weights learn by
    SGD, scores by Adam as there (written out below). At the end exactly the share asked for goes: of every layer with
    hard movement, of all layers together with soft and block movement, whose threshold and penalty say nothing about
    it. Floors of the threshold hold in training; at the end a layer keeps at least one unit. Hard movement
    removes floor(count · (1 − v)) of a layer, theirs keeps int(v · count). L0 and 2:4 are left out.
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
from kerf.compress.training.pressure import ParameterGroup, Plan, Pressure, Task
from kerf.compress.units.weights import Granularity, OneByN, Weight, WeightUnits

LEAST = 0.005  # share of every layer that a threshold leaves
BETAS = 0.9, 0.999  # of Adam


def cubic(t: int, steps: int, warm: float, final: float, start: float, end: float) -> float:
    """`start` for `warm` steps, `end` in the last final · warm; between them end + (start − end) (1 − progress)³."""
    if t <= warm:
        return start
    if t > steps - final * warm:
        return end
    return end + (start - end) * (1 - (t - warm) / (steps - (final + 1) * warm)) ** 3


def straight(weight: Tensor, score: Tensor, keep: Tensor, unit: WeightUnits) -> Tensor:
    """W' = M ∘ W. Backward, M is the identity of the scores: ∂L/∂S = Σ over the unit of ∂L/∂W' ∘ W."""
    through = unit.mask(score)
    return weight * (unit.mask(keep) + (through - through.detach())).to(weight.dtype)


class Movement(Pressure):
    """Scores S, from zero, one per unit; the network computes with M(S) ∘ W.

    Without a threshold M keeps the share v(t) of each layer with the largest S. With one it keeps σ(S) > τ(t), and
    λ(t) times the mean of σ(S) is added to the loss.
    """

    def __init__(
        self, scope: Scope, rate: float, warm: float, final: float, threshold: float | None = None, penalty: float = 0.0
    ):
        self.scope, self.rate, self.warm, self.final = scope, rate, warm, final
        self.threshold, self.penalty = threshold, penalty
        self.shadows = Shadows(self._value)

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], plan: Plan) -> None:
        self.units, self.plan = units, plan
        self.index = {u.path: i for i, u in enumerate(units)}
        device = next(model.parameters()).device
        self.keep = [torch.ones(u.count, dtype=torch.bool, device=device) for u in units]
        self.s = nn.ParameterList(torch.zeros(u.count, device=device) for u in units)
        self.moments = [[torch.zeros(u.count, device=device) for _ in BETAS] for u in units]
        model.add_module("movement", self.s)
        self.shadows.attach(model, self.index)
        self.attached = True

    def _value(self, path: str, weight: Tensor) -> Tensor:
        i = self.index[path]
        return straight(weight, self.s[i], self.keep[i], self.units[i])

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"movement.{i}" for i in range(len(self.s))]
        return [ParameterGroup(names, self.rate / self.plan.peak, momentum=0.0, nesterov=False, weight_decay=0.0)]

    def _at(self, step: int, start: float, end: float) -> float:
        return cubic(step, self.plan.steps, self.warm * self.plan.steps, self.final, start, end)

    @torch.no_grad()
    def _choose(self, step: int) -> None:
        gone = 1 - self._at(step, 1.0, 1 - self.plan.sparsity)
        for s, keep in zip(self.s, self.keep):
            if self.threshold is None:
                keep.fill_(False)
                left = len(s) - int(len(s) * gone + 1e-9)
            else:
                keep.copy_(s.sigmoid() > self._at(step, 0.0, self.threshold))
                left = int(LEAST * len(s)) + 1
            keep[s.topk(min(left, len(s))).indices] = True

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        self._choose(step)
        loss, logits = task(model, x, y)
        if self.threshold:
            weight = self.penalty * self._at(step, 0.0, self.threshold) / self.threshold
            loss = loss + weight * torch.stack([s.sigmoid().mean() for s in self.s]).mean()
        return loss, logits

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        """Adam's directions for the scores, which the optimiser then follows at their own rate."""
        for s, (mean, square) in zip(self.s, self.moments):
            if s.grad is not None:
                mean.lerp_(s.grad, 1 - BETAS[0])
                square.lerp_(s.grad.square(), 1 - BETAS[1])
                least = (square / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(1e-8)
                s.grad.copy_(mean / (1 - BETAS[0] ** (step + 1)) / least)

    def score(self, unit: WeightUnits) -> Tensor:
        """S; before there are any, mean |w|."""
        return self.s[self.index[unit.path]].detach() if self.attached else criteria.l1(unit)

    def fold(self, model: nn.Module) -> None:
        """Without the masks; what they hide is zeroed behind it."""
        if self.attached:
            self.shadows.detach()
            del model.movement
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        moments = {f"moment.{i}.{k}": m for i, both in enumerate(self.moments) for k, m in enumerate(both)}
        return moments | {f"keep.{i}": k for i, k in enumerate(self.keep)}

    def restore(self, state: dict[str, Tensor]) -> None:
        for i, (keep, both) in enumerate(zip(self.keep, self.moments)):
            keep.copy_(state[f"keep.{i}"])
            for k, moment in enumerate(both):
                moment.copy_(state[f"moment.{i}.{k}"])

    def report(self, model: nn.Module) -> str:
        left, total = sum(int(k.sum()) for k in self.keep), sum(u.count for u in self.units)
        return f"{left} of {total} units are kept ({left / total:.1%})"


def movement(settings: Settings, *, score_rate: float = 1e-2, warm: float = 0.1) -> Recipe:
    """Removes, in every layer, weights whose learned scores are smallest, more and more while training.

    score_rate: highest learning rate of scores; warm: share of the steps before the first weight goes.
    """
    return _recipe(Weight(settings.full), Movement(scopes.local, score_rate, warm, 2.0))


def soft_movement(
    settings: Settings, *, score_rate: float = 1e-2, warm: float = 0.1, threshold: float = 0.1, penalty: float = 400.0
) -> Recipe:
    """Removes weights of all layers whose learned scores are smallest, those below a rising threshold while training.

    threshold: τ at the end; penalty: λ at the end, of mean σ(S).
    """
    return _recipe(Weight(settings.full), Movement(scopes.overall, score_rate, warm, 2.0, threshold, penalty))


def block_movement(
    settings: Settings, *, score_rate: float = 1e-2, warm: float = 0.05, threshold: float = 0.1, penalty: float = 1.0
) -> Recipe:
    """Removes 1×N blocks of all layers whose learned scores are smallest; otherwise as soft_movement."""
    blocks = OneByN(settings.n, settings.full)
    return _recipe(blocks, Movement(scopes.overall, score_rate, warm, 4.0, threshold, penalty))


def _recipe(granularity: Granularity, movement: Movement) -> Recipe:
    return Recipe(
        granularity,
        movement.score,
        movement.scope,
        schedules.prune_while_training,
        pressure=movement,
    )
