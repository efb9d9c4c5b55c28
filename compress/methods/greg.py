"""Growing regularisation: an L2 penalty that grows on the channels that are to go, until they are gone.

Paper: Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021, arXiv 2012.09243
Code:  github.com/MingSun-Tse/Regularization-Pruning
Differs: the same share of every layer, or the share of MACs asked for, where the authors set rates by stage. Short runs
    get their own pace: both steps of growth are multiplied so that the limit is reached in ten elevenths of the phase
    and the rest stabilises, as the authors' 110,000 steps on CIFAR do; they come out at 1e-5 and 1e-4 where the phase
    is long enough. The interval is 10 steps (theirs on CIFAR; 5 on ImageNet), or a hundredth of the phase if that is
    less. A layer grown to the limit and one whose pruned weights are a thousandth of the kept ones stop at the same
    time here.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan, Pressure
from kerf.compress.units.channels import ChannelUnits
from kerf.compress.units.weights import Units, Weight, WeightUnits
from kerf.errors import BadInput

UNITS = "channel", "weight"
PICKED = 1e-2  # τ', the penalty at which greg2 chooses
LIMIT = 1.0  # τ, at which it stops growing
RATIO = 1000.0  # mean |kept| / mean |pruned| at which it stops too
GROWING = 10 / 11  # share of the phase; the rest stabilises


def going(count: int, ratio: float) -> int:
    """How many of a layer's units go: min(⌈p N⌉, N − 1)."""
    return min(math.ceil(count * ratio - 1e-9), count - 1)


class Growing(Pressure):
    """∂L/∂w ← ∂L/∂w + λ w, on the filters that make the channels. λ of those that go grows every few steps.

    `pick` is None for greg1, which chooses at once. For greg2 the λ of all grows by it, to τ', before it chooses.
    """

    def __init__(self, settings: Settings, pick: float | None, prune: float, recover: float, interval: int):
        self.settings, self.pick, self.prune, self.recover = settings, pick, prune, recover
        self.asked = interval

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[Units], plan: Plan) -> None:
        self.units, self.sparsity = units, plan.sparsity
        self.structured = isinstance(units[0], ChannelUnits)
        self.parameters = dict(model.named_parameters())
        self.interval = max(1, min(self.asked, plan.steps // 100))
        picking = PICKED / self.pick if self.pick else 0.0
        needed = picking + (LIMIT - (PICKED if self.pick else 0.0)) / self.prune
        self.speed = max(1.0, needed * self.interval / (GROWING * plan.steps))
        self.level, self.ratio, self.picked, self.finished = 0.0, 0.0, False, False
        self.goes = [torch.zeros(u.count, dtype=torch.bool, device=u.sizes.device) for u in units]
        if not self.pick:
            self._choose()
        self._spread()
        self.attached = True

    def _choose(self) -> None:
        keep = self.widths([criteria.l1(u) for u in self.units], self.units, self.sparsity)
        for goes, kept in zip(self.goes, keep):
            goes.copy_(~kept)
        self.picked = True

    def widths(self, scores: Sequence[Tensor], units: Sequence[Any], ratio: float) -> list[Tensor]:
        floors = self.settings.floors
        if self.settings.by_macs and isinstance(units[0], ChannelUnits):
            return scopes.uniform_macs(scores, units, ratio, **floors)
        shares = [going(u.count, ratio) / u.count for u in units]
        return [scopes.local([s], [u], share, **floors)[0] for s, u, share in zip(scores, units, shares)]

    def grow(self) -> None:
        """One update of λ."""
        if self.finished:
            return
        if not self.picked:
            self.level += (self.pick or 0.0) * self.speed
            if self.level >= PICKED * (1 - 1e-9):
                self._choose()
        else:
            self.level += self.prune * self.speed
            ratio = min(self._ratios(), default=0.0)
            self.ratio = 0.9 * self.ratio + 0.1 * ratio if self.ratio else ratio
            # of single weights the limit alone ends it, as there
            self.finished = self.level > LIMIT * (1 + 1e-9) or (self.structured and self.ratio >= RATIO)
        self._spread()

    def _ratios(self) -> list[float]:
        """Mean |w| of kept units over that of the others, layer by layer."""
        scores = [(criteria.l1(u), g) for u, g in zip(self.units, self.goes) if bool(g.any())]
        return [float(s[~g].mean() / s[g].mean().clamp(min=1e-30)) for s, g in scores]

    def _spread(self) -> None:
        """λ of every filter, from that of the channels it makes, or of every weight; none where nothing is lost."""
        self.strength: dict[str, Tensor] = {}
        kept = self.recover if self.pick else 0.0
        for unit, goes in zip(self.units, self.goes):
            if self.picked and not bool(goes.any()):
                continue
            each = torch.where(goes | torch.tensor(not self.picked, device=goes.device), self.level, kept)
            if isinstance(unit, WeightUnits):
                self.strength[unit.path] = unit.mask(each).to(self.parameters[unit.path])
                continue
            assert isinstance(unit, ChannelUnits)
            for path in unit.channels.makers:
                weight = self.parameters[path]
                own = self.strength.setdefault(path, weight.new_zeros(len(weight)))
                positions = unit.channels.positions((path, 0)).to(weight.device)
                own[positions] = each[:, None].expand(positions.shape).to(weight)

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        if step % self.interval == 0:
            self.grow()
        for path, strength in self.strength.items():
            weight = self.parameters[path]
            if weight.grad is not None:
                each = strength if strength.ndim == weight.ndim else strength.view(-1, *[1] * (weight.ndim - 1))
                weight.grad.addcmul_(weight, each)

    def select(self, scores: Sequence[Tensor], units: Sequence[Units], ratio: float) -> list[Tensor]:
        if not self.picked:  # a phase of fewer steps than picking takes
            self._choose()
        return [~goes for goes in self.goes]

    def state(self) -> dict[str, Tensor]:
        own = torch.tensor([self.level, self.ratio, self.picked, self.finished], dtype=torch.double)
        return {"own": own} | {str(i): goes for i, goes in enumerate(self.goes)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.level, self.ratio = state["own"][:2].tolist()
        self.picked, self.finished = (bool(v) for v in state["own"][2:])
        for i, goes in enumerate(self.goes):
            goes.copy_(state[str(i)])
        self._spread()

    def report(self, model: nn.Module) -> str:
        apart = f", kept weights {min(self._ratios(), default=0):.1f} times those that go" if self.picked else ""
        return f"penalty {self.level:.1e}{apart}"


def greg1(
    settings: Settings,
    *,
    prune: float = 1e-4,
    interval: int = 10,
    share: float = 0.5,
    rate: float = 0.0,
    unit: str = "channel",
) -> Recipe:
    """A growing L2 penalty on the channels with the smallest mean |w| before they are cut; then fine-tuning.

    prune: growth of λ, every `interval` steps; share: of the epochs, under the penalty; rate: their learning rate,
    0 for the run's own; unit: channel, or weight for single ones, which become zero.
    """
    return _recipe(settings, Growing(settings, None, prune, 0.0, interval), share, rate, unit)


def greg2(
    settings: Settings,
    *,
    pick: float = 1e-5,
    prune: float = 1e-4,
    recover: float = -1e-4,
    interval: int = 10,
    share: float = 0.5,
    rate: float = 0.0,
    unit: str = "channel",
) -> Recipe:
    """A growing L2 penalty on all channels tells them apart by curvature; it grows on with the smallest; then as greg1.

    pick, prune: growth of λ before and after channels are chosen; recover: λ of those that stay.
    """
    return _recipe(settings, Growing(settings, pick, prune, recover, interval), share, rate, unit)


def _recipe(settings: Settings, growing: Growing, share: float, rate: float, unit: str) -> Recipe:
    if unit not in UNITS:
        raise BadInput(f"unit is {unit!r}: expected one of {', '.join(UNITS)}")
    growths = [growing.prune] if growing.pick is None else [growing.prune, growing.pick]
    if min(growths) <= 0 or growing.asked < 1:  # a λ that does not grow leaves all to the cut
        told = ", ".join(f"{growth:g}" for growth in growths)
        raise BadInput(f"λ grows by {told} every {growing.asked} steps: expected above 0, and at least 1")
    return Recipe(
        settings.channels() if unit == "channel" else Weight(settings.full),
        criteria.l1,
        growing.select,
        partial(schedules.press_trained, share=share, rate=rate),
        pressure=growing,
        reach=growing.widths,
    )
