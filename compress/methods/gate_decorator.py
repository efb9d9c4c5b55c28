"""Gate decorator: a gate on every batch norm, whose gradient says what a channel is worth; ticks prune, tocks train.

Paper: You et al., "Gate Decorator: Global Filter Pruning Method for Accelerating Deep Convolutional Neural Networks",
    NeurIPS 2019, arXiv 1909.08174
Code:  github.com/youzhonghui/gate-decorator-pruning
Differs: tick by tick the target comes nearer by an equal share of the MACs (or channels) asked for, and exactly so;
    the authors take 0.2 % of the channels each time, one more than they count and more where scores are equal. Tocks
    and their ticks fill the phase, in as many rounds as their ResNet-56 took (fewer in short phases), instead of 10
    epochs each. The rate's triangle is a factor of the run's own schedule. The cost term, whose weight is 0 by default,
    is left out. A γ of zero gets the shift b = 0.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.methods.own_norms import momentum_of
from kerf.compress.network.grafts import affine
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.masking import ChannelMasks
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.units.channels import ChannelUnits, by_channel
from kerf.errors import BadInput

LOWEST = 0.1  # learning rate of ticks, and at both ends of a tock, as a share of the highest
LAST = 0.1  # the best tenth of a layer goes last
SHIFT = 10.0  # |b| at most


class GatedBatchNorm2d(nn.BatchNorm2d):
    """z = φ ((x − μ) / √(v + ε) + b); φ is `weight` and b is `bias`."""

    def forward(self, x: Tensor) -> Tensor:
        momentum = momentum_of(self)
        shift = self.weight * self.bias
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, shift, self.training, momentum, self.eps
        )


def gate(norm: nn.BatchNorm2d) -> None:
    """φ = γ, b = β / γ: the same function where |β / γ| ≤ 10."""
    shift = torch.where(norm.weight == 0, 0.0, norm.bias / norm.weight)
    norm.bias.copy_(shift.clamp(-SHIFT, SHIFT))
    norm.__class__ = GatedBatchNorm2d  # the same tensors under the same names


def ungate(norm: nn.BatchNorm2d) -> None:
    norm.bias.mul_(norm.weight)
    norm.__class__ = nn.BatchNorm2d


class Gates(Pressure):
    """Score of a channel: Σ over the batches of a tick, and over the norms that carry it, of |∂L/∂φ · φ|."""

    def __init__(self, scope: Scope, reg_weight: float, rounds: int, ticks: int):
        self.scope, self.reg_weight, self.asked, self.ticks = scope, reg_weight, rounds, ticks
        self.masks = ChannelMasks()

    @torch.no_grad()
    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.plan = units, plan
        self.rounds = max(1, min(self.asked, plan.steps // (2 * self.ticks)))
        for norm in affine(model, nn.BatchNorm2d):
            gate(norm)
        self.masks.attach(model, graph, units)
        self.scores = [torch.zeros(u.count, device=u.sizes.device) for u in units]
        self.pruned = 0  # ticks at whose end channels went
        gated = [_gate_paths(model, u) for u in units]
        self.gates = [[(p, model.get_parameter(p)) for p in paths] for paths in gated]
        light = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.Linear) for p in m.parameters()]
        self.frozen = [p for p in model.parameters() if all(p is not other for other in light)]
        self.attached = True

    def at(self, step: int) -> tuple[int, float | None]:
        """Ticks finished before that step, and how far its tock is (None in a tick)."""
        round_, within = divmod(step * self.rounds, self.plan.steps)
        part = within / self.plan.steps
        if part < 0.5:
            return round_ * self.ticks, 2 * part
        return round_ * self.ticks + int((2 * part - 1) * self.ticks + 1e-9), None

    def rate_factor(self, step: int) -> float:
        tock = self.at(step)[1]
        return LOWEST if tock is None else LOWEST + (1 - LOWEST) * (1 - abs(2 * tock - 1))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        done, tock = self.at(step)
        if done > self.pruned:
            share = self.plan.sparsity * done / (self.rounds * self.ticks)
            self.masks.keep(self.scope([self.score(u) for u in self.units], self.units, share))
            self.pruned = done
            for score in self.scores:
                score.zero_()
        loss, logits = task(model, x, y)
        if tock is not None:
            gates = [norm.weight for norm in affine(model, GatedBatchNorm2d)]
            loss = loss + self.reg_weight * sum(g.abs().sum() for g in gates)
        return loss, logits

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        if self.at(step)[1] is not None:
            return
        for parameter in self.frozen:
            parameter.grad = None
        for unit, score, gates in zip(self.units, self.scores, self.gates):
            for path, phi in gates:
                assert phi.grad is not None  # it is in every forward pass
                score += by_channel((phi.grad * phi).abs(), unit.channels, (path, 0)).sum(1)

    def score(self, unit: ChannelUnits) -> Tensor:
        """What is masked comes first, a layer's best tenth last."""
        index = [u.path for u in self.units].index(unit.path)
        score = self.scores[index].clone()
        score[~self.masks.kept[index]] = -torch.inf
        score[scopes.best(score, max(1, int(LAST * unit.count))).to(score.device)] = torch.inf
        return score

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Plain batch norms, γ = φ and β = b φ; masked channels come back unless they are cut."""
        self.masks.detach()
        for norm in affine(model, GatedBatchNorm2d):
            ungate(norm)
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        own = {"own": torch.tensor([self.pruned])}
        own |= {f"score.{i}": score for i, score in enumerate(self.scores)}
        return own | {f"kept.{i}": kept for i, kept in enumerate(self.masks.kept)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.pruned = int(state["own"][0])
        self.scores = [score.copy_(state[f"score.{i}"]) for i, score in enumerate(self.scores)]
        self.masks.keep([state[f"kept.{i}"].to(kept.device) for i, kept in enumerate(self.masks.kept)])

    def report(self, model: nn.Module) -> str:
        left, total = sum(int(k.sum()) for k in self.masks.kept), sum(u.count for u in self.units)
        return f"{self.pruned} of {self.rounds * self.ticks} ticks, {left} of {total} channels left"


def _gate_paths(model: nn.Module, unit: ChannelUnits) -> list[str]:
    """Paths of the φ of every batch norm that carries these channels."""
    paths = [path for path, axis in unit.channels.places if axis == 0 and path.endswith(".weight")]
    return [p for p in paths if isinstance(model.get_submodule(p.rpartition(".")[0]), GatedBatchNorm2d)]


def gate_decorator(
    settings: Settings,
    *,
    reg_weight: float = 1e-3,
    rounds: int = 15,
    ticks: int = 10,
    share: float = 0.5,
    rate: float = 0.0,
) -> Recipe:
    """Cuts, over all layers, channels whose gates' gradients say that they matter least, a few at a time.

    reg_weight: of Σ |φ|, in tocks; rounds: tocks in the phase; ticks: after each; share: of the epochs, with gates;
    rate: the highest learning rate in them, 0 for the run's own schedule.
    """
    if min(rounds, ticks) < 1:
        raise BadInput(f"{rounds} rounds, {ticks} ticks: expected at least 1 of each")
    gates = Gates(settings.pooled, reg_weight, rounds, ticks)
    return Recipe(
        settings.channels(scaled=True),
        gates.score,
        gates.scope,
        partial(schedules.press_trained, share=share, rate=rate),
        pressure=gates,
    )
