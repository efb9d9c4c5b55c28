"""Filters-while-training-style: filters go a few at a time within the ordinary training run; nothing is retrained.

Paper: Roy et al., "Pruning Filters while Training for Efficiently Optimizing Deep Learning Networks", 2020,
    arXiv 2003.02800 (the abstract alone was read)
Code:  none known
Differs: filled in are the cadence (from a twentieth of the epochs on, over half of them, a few filters more at the end
    of each) and the same share of every layer, rounded down. Removed filters are cut at once, so that training gets
    cheaper; in a user's own loop they are held at zero, with the batch norms and depthwise filters behind them, and cut
    at the end: the losses are the same. Mean activations are those of the batch that was trained on last.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kerf.compress.measures import feature_maps
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput


class Ramp(Pressure):
    """Removed after epoch e: the share min(1, (e − e0 + 1) / E) of what is to go in the end."""

    def __init__(self, by: str, start: float, over: float, scope: Callable[..., list[Tensor]], seed: int):
        if by not in CRITERIA:
            raise BadInput(f"by is {by!r}: expected one of {', '.join(CRITERIA)}")
        if not (0 <= start < 1 and 0 < over <= 1):
            raise BadInput(f"start {start:g}, over {over:g}: expected 0 to below 1, and above 0 to 1, of the epochs")
        self.criterion, self.start, self.over, self.scope, self.seed = CRITERIA[by], start, over, scope, seed

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.graph, self.plan = units, graph, plan
        self.parameters = dict(model.named_parameters())
        epochs = plan.steps // plan.each
        self.first = min(round(self.start * epochs), epochs - 1)  # an epoch at whose end something goes
        self.span = max(1, min(round(self.over * epochs), epochs - self.first))
        self.masks = [torch.ones(u.count, dtype=torch.bool) for u in units]
        random = torch.Generator().manual_seed(self.seed)
        self.lots = {u.path: torch.rand(u.count, generator=random) for u in units}  # uniform at every event
        self._hold()
        self.attached = True

    def share(self, epoch: int) -> float:
        return min(1.0, max(0, epoch - self.first + 1) / self.span)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        self.batch = x, y
        return task(model, x, y)

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        if self.held:
            gradients = {path: p.grad for path, p in self.held.items() if p.grad is not None}
            torch._foreach_mul_(list(gradients.values()), [self.alive[path] for path in gradients])

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        share = self.share(step // self.plan.each)
        if (step + 1) % self.plan.each == 0 and share > self.share(step // self.plan.each - 1):
            keep = self.choose(self.criterion(self, model), self.units, share * self.plan.sparsity)
            if self.plan.cut:
                self.lots = {u.path: self.lots[u.path][kept] for u, kept in zip(self.units, keep)}
                self.graph, self.units = self.plan.cut(self.units, keep)
                keep = [torch.ones(u.count, dtype=torch.bool) for u in self.units]
            self.masks = keep
            self._hold()
        if self.held:
            torch._foreach_mul_(list(self.held.values()), list(self.alive.values()))

    def _hold(self) -> None:
        """Which entries of which parameters are zero: all that makes, scales, shifts or filters a removed channel."""
        self.alive: dict[str, Tensor] = {}
        for unit, mask in zip(self.units, self.masks):
            for path, axis in unit.channels.places if not mask.all() else ():
                if axis == 0 and path in self.parameters:
                    p = self.parameters[path]
                    left = ~unit.channels.entries((path, 0), ~mask).to(p.device).view(-1, *[1] * (p.ndim - 1))
                    self.alive[path] = self.alive[path] & left if path in self.alive else left
        self.held = {path: self.parameters[path] for path in self.alive}

    def choose(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        """What has gone stays gone."""
        left = [s.cpu().double().masked_fill(~mask, -torch.inf) for s, mask in zip(scores, self.masks)]
        return self.scope(left, units, ratio)

    def state(self) -> dict[str, Tensor]:
        lots = {f"lot.{path}": lots for path, lots in self.lots.items()}
        return {u.path: mask for u, mask in zip(self.units, self.masks)} | lots

    def restore(self, state: dict[str, Tensor]) -> None:
        self.lots = {path: state[f"lot.{path}"].cpu() for path in self.lots}
        self.masks = [state[u.path].bool().cpu() for u in self.units]
        self._hold()

    def report(self, model: nn.Module) -> str:
        total = sum(u.count + u.gone for u in self.units)
        return f"gone: {total - sum(int(m.sum()) for m in self.masks)} of {total} channels"


def _activations(ramp: Ramp, model: nn.Module) -> list[Tensor]:  # on the batch that is being trained on
    found = feature_maps.mean(
        model, ramp.graph, ramp.units, lambda: iter([ramp.batch]), len(ramp.batch[0]), feature_maps.level
    )
    return [found[u.path] for u in ramp.units]


CRITERIA: dict[str, Callable[[Ramp, nn.Module], list[Tensor]]] = {
    "l1": lambda ramp, _: [criteria.l1(u) for u in ramp.units],
    "activation": _activations,
    "random": lambda ramp, _: [ramp.lots[u.path] for u in ramp.units],
}


def while_training(settings: Settings, *, by: str = "l1", start: float = 0.05, over: float = 0.5) -> Recipe:
    """Removes filters while training, the same share of every layer, as many more after each epoch.

    by: l1, activation or random; start, over: shares of the epochs before the first removal, and from it to the last.
    """
    scope = settings.uniform
    ramp = Ramp(by, start, over, scope, settings.seed)
    return Recipe(settings.channels(), criteria.l1, ramp.choose, schedules.within_training, pressure=ramp, reach=scope)
