"""What each layer loses, when not all lose the same: as little harm as a target of MACs or milliseconds allows."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kerf import temporary
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import scopes
from kerf.compress.pruning.recipe import Recipe, prune
from kerf.compress.pruning.sensitivity import GRID, interpolate, share_out
from kerf.compress.units.weights import OneByN
from kerf.errors import BadInput

CLOSE, NEAR = 0.02, 0.05  # of the target: good enough, and the most that is accepted
ATTEMPTS = 5


class Clock(Protocol):
    """Times .onnx files on the machine that the network is for (kerf.tune.network_timer)."""

    @property
    def shares(self) -> Sequence[float]:
        """Of a layer's blocks, that `layers_us` tries to go without."""

    def network_ms(self, path: Path) -> tuple[float, float, str]:
        """(kerf's latency, the fastest dense engine's, its name)."""

    def layers_us(self, path: Path, layers: Sequence[str], n: int) -> dict[str, tuple[float, ...]]:
        """Layer -> dense, and with each of `shares` of its n×1 blocks zero."""


class Harm(Protocol):
    """What layers cost: measured one by one (`Sensitivity`), or of a method's prices (`PriceCurves`)."""

    def harm(self, path: str) -> Tensor:
        """(len(GRID),) by how much the loss rises with each share of the layer gone, from 0 at 0, never falling."""


@dataclass(frozen=True)
class Allocation:
    """``shares``: weight -> share of its units that goes. Of all MACs in these layers, ``removed`` go.

    ``heights``: weight -> N of its blocks, where it is not the recipe's.
    """

    shares: dict[str, float]
    removed: float
    target_ms: float | None = None
    latency_ms: float | None = None  # as built before fine-tuning, at the machine's speed when the dense one was timed
    dense_ms: float | None = None  # of the unpruned network in `dense_engine`
    dense_engine: str | None = None
    heights: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def recipe(self, recipe: Recipe) -> Recipe:
        """`recipe` with these shares, and heights of blocks, in place of one for all."""
        units = recipe.granularity
        if self.heights and isinstance(units, OneByN):
            units = replace(units, heights=self.heights)
        return replace(recipe, granularity=units, scope=scopes.allotted(self.shares, self.removed, recipe.scope))


def by_macs(units: Sequence, sensitivity: Harm, share: float) -> Allocation:
    """Remove `share` of the MACs of all prunable layers together. Raises ValueError if no choice does."""
    macs = {u.path: float(u.macs.sum()) for u in units}
    harm = {path: sensitivity.harm(path) for path in macs}
    saved = {path: torch.tensor(GRID, dtype=torch.float64) * value for path, value in macs.items()}
    chosen = share_out(harm, saved, share * sum(macs.values()))
    return _made({path: GRID[i] for path, i in chosen.items()}, macs)


def _made(shares: dict[str, float], macs: dict[str, float]) -> Allocation:
    removed = sum(shares[path] * macs[path] for path in shares) / sum(macs.values())
    return Allocation(shares, removed)


class Networks(Protocol):
    """A network and what it is with parts of its layers zero, as files that a Clock times."""

    @property
    def layers(self) -> Mapping[str, str]:
        """Weight that can be pruned -> its layer's name in the files."""

    @property
    def macs(self) -> Mapping[str, float]:
        """Weight that can be pruned -> multiply-accumulates of its layer."""

    @property
    def n(self) -> int | None:
        """Height of blocks where an allocation says none."""

    def write(self, made: Allocation | None, path: Path) -> None:
        """The network as `made` prunes it, or dense: for its time, so what the zeros do to its answers is no matter."""


@dataclass(frozen=True)
class Modules:
    """A torch module, pruned by ``recipe`` and written by ``export``."""

    model: nn.Module
    recipe: Recipe
    graph: DependencyGraph
    example: Tensor
    export: Callable[[nn.Module, Tensor, Path], Any]

    @cached_property
    def macs(self) -> dict[str, float]:
        units = self.recipe.granularity.split(self.model, self.graph, self.example)
        return {u.path: float(u.macs.sum()) for u in units}

    @property
    def layers(self) -> dict[str, str]:
        return {path: path.removesuffix(".weight") for path in self.macs}

    @property
    def n(self) -> int | None:
        return getattr(self.recipe.granularity, "n", None)

    def write(self, made: Allocation | None, path: Path) -> None:
        model = self.model
        if made and made.removed:
            model = copy.deepcopy(self.model)
            prune(model, made.recipe(self.recipe), self.graph, self.example, made.removed)
        self.export(model, self.example, path)


def by_time(
    networks: Networks,
    sensitivities: Mapping[int, Harm],
    clock: Clock,
    *,
    target_ms: float | None,
    speedup: float | None,
    say: Callable[[str], None],
) -> Allocation:
    """Remove what makes the built network run in `target_ms`, or `speedup` times as fast as the fastest dense engine.

    `sensitivities`: N -> harm of 1×N blocks; every layer takes one N of them. Shares come from layers timed alone; the
    network that they make is built, timed and corrected. Raises ValueError with what is reachable when that is not
    within 5 % of the target.
    """
    with temporary.folder("prune") as name:
        trial = _Trial(networks, clock, Path(name))
        whole, dense, engine = trial.network_ms(None, "dense")
        target = target_ms if target_ms is not None else dense / (speedup or 1.0)
        say(f"dense: {engine} {dense:.3f} ms, kerf {whole:.3f} ms; target {target:.4g} ms")
        if whole <= target * (1 + NEAR):
            raise BadInput(
                f"the dense network takes {whole:.3f} ms here, within the {target:.4g} asked for: no need to prune"
            )
        took, made = _nearest(trial, _Choices(trial, sensitivities), whole, target, dense, say)
    if abs(took - target) > NEAR * target:
        raise BadInput(
            f"{target:.4g} ms cannot be met: the nearest network found takes {took:.3f} ms ({dense / took:.2f}x of "
            f"{engine} on the dense one), with {made.removed:.0%} of the MACs removed"
        )
    return replace(made, target_ms=target, latency_ms=took, dense_ms=dense, dense_engine=engine)


@dataclass(frozen=True)
class _Trial:
    """Networks that are built and timed to see what an allocation is worth."""

    networks: Networks
    clock: Clock
    folder: Path

    def network_ms(self, made: Allocation | None, name: str) -> tuple[float, float, str]:
        path = self.folder / f"{name}.onnx"
        self.networks.write(made, path)
        return self.clock.network_ms(path)

    def time_with(self, made: Allocation, name: str, dense: float) -> float:
        """Milliseconds of the network pruned so; `dense` are those of the dense engine when it was first timed."""
        kerf, rival, _ = self.network_ms(made, name)
        # a machine's clock drifts by more than is asked for: the dense engine, which zeros do not help, tells
        return kerf * dense / rival


class _Choices:
    """What each layer may lose, with blocks of which height: harm and milliseconds saved by layer."""

    def __init__(self, trial: _Trial, sensitivities: Mapping[int, Harm]):
        networks = trial.networks
        self.macs = dict(networks.macs)
        named = networks.layers
        times = [trial.clock.layers_us(trial.folder / "dense.onnx", [*named.values()], n) for n in sensitivities]
        self.options = [(n, share) for n in sensitivities for share in GRID]  # of every layer
        self.harm = {path: torch.cat([s.harm(path) for s in sensitivities.values()]) for path in self.macs}
        self.saved = {
            path: torch.cat([_saved(trial.clock.shares, us.get(named[path])) for us in times]) for path in self.macs
        }
        self.most = float(sum(s.max() for s in self.saved.values()))
        self.own_heights = list(sensitivities) != [networks.n]

    def saving(self, need: float) -> Allocation:
        """With the least harm, what is expected to save `need` milliseconds, or all that can be."""
        picked = share_out(self.harm, self.saved, min(need, self.most))
        chosen = {path: self.options[i] for path, i in picked.items()}
        made = _made({path: share for path, (_, share) in chosen.items()}, self.macs)
        return replace(made, heights={path: n for path, (n, _) in chosen.items()}) if self.own_heights else made


def _nearest(
    trial: _Trial, choices: _Choices, whole: float, target: float, dense: float, say: Callable[[str], None]
) -> tuple[float, Allocation]:
    """(milliseconds, allocation) nearest to `target` of some that are built, each correcting the one before."""
    need, tries = whole - target, list[tuple[float, Allocation]]()
    for attempt in range(ATTEMPTS):
        made = choices.saving(need)
        took = trial.time_with(made, str(attempt), dense)
        tries.append((took, made))
        say(f"  {made.removed:.1%} of the MACs removed: {took:.3f} ms")
        if abs(took - target) <= CLOSE * target or (need >= choices.most and took > target):
            break
        need += took - target
    return min(tries, key=lambda t: abs(t[0] - target))


def _saved(shares: Sequence[float], us: Sequence[float] | None) -> Tensor:
    """(len(GRID),) milliseconds, never falling; none for a layer that was not timed, being fused away."""
    if us is None:
        return torch.zeros(len(GRID), dtype=torch.float64)
    return interpolate((0.0, *shares), [(us[0] - t) / 1e3 for t in us]).clamp(min=0).cummax(0).values
