"""What channels are on images. Reads activations of a network that is evaluated; changes nothing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.compress.network.surgery import depthwise, tensor_at
from kerf.compress.network.watching import evaluated, hooked
from kerf.compress.training.sample import Sample, first
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput

Measure = Callable[[Tensor], Tensor]  # maps (B, width, H, W) -> (B, width)


class OfChannels(Protocol):
    """Units of channels, or whatever else names a set of them."""

    @property
    def path(self) -> str: ...

    @property
    def channels(self) -> ChannelSet: ...


@dataclass(frozen=True)
class _View:
    """Where a set's channels can be seen whole: what a convolution reads, or what leaves the layer that makes them."""

    path: str  # of the module
    entries: Tensor  # (width,) on axis 1
    read: bool

    def hook(self, model: nn.Module, see: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(self.path)
        if self.read:
            return module.register_forward_pre_hook(lambda _, args: see(self._of(args[0])))
        return module.register_forward_hook(lambda _, __, output: see(self._of(output.relu())))

    def _of(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.entries.to(x.device))


def _views(model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> list[_View]:
    found, passed = [], depthwise(model, channels)
    for path, axis in channels.places:
        reads = path in passed or ((path, axis) in channels.columns and tensor_at(model, path).ndim > 2)
        if reads and channels.copies((path, axis)) == 1:
            found.append(_View(path.rpartition(".")[0], channels.positions((path, axis))[:, 0], read=True))
    for path in channels.makers:
        if channels.copies((path, 0)) == 1:
            module = graph.norms.get(path) or path.rpartition(".")[0]
            found.append(_View(module, channels.positions((path, 0))[:, 0], read=False))
    return found


@torch.no_grad()
def mean(
    model: nn.Module,
    graph: DependencyGraph,
    units: Sequence[OfChannels],
    sample: Sample,
    images: int,
    measure: Measure,
) -> dict[str, Tensor]:
    """Set -> (width,): the mean of `measure` over the maps of the first `images` images, one forward pass for all sets.

    Maps are what the first convolution behind reads, activation included; where only smaller maps are read, as behind
    pooling, the layer's own outputs (of its batch norm if it has one) under ReLU. Raises ValueError where a channel is
    no single map.
    """
    sums = {u.path: torch.zeros(()) for u in units}
    counts = dict.fromkeys(sums, 0)
    areas: dict[int, int] = {}

    def adding(path: str) -> Callable[[Tensor], None]:
        def see(maps: Tensor) -> None:
            sums[path] = sums[path].to(maps.device) + measure(maps.float()).double().sum(0)
            counts[path] += len(maps)

        return see

    def sizing(view: _View) -> Callable[[Tensor], None]:
        def see(maps: Tensor) -> None:
            areas[id(view)] = maps[0, 0].numel()

        return see

    views = {u.path: _views(model, graph, u.channels) for u in units}
    if blind := next((path for path, found in views.items() if not found), None):
        raise BadInput(f"{blind}: a channel of it is not one map on any layer's input or output")
    with evaluated(model):
        _watch(model, [(v, sizing(v)) for found in views.values() for v in found], [next(first(sample, 1))[0]])
        chosen = {path: max(found, key=lambda v: areas[id(v)]) for path, found in views.items()}
        _watch(model, [(v, adding(path)) for path, v in chosen.items()], (x for x, _ in first(sample, images)))
    return {path: total / counts[path] for path, total in sums.items()}


def _watch(model: nn.Module, watchers: Sequence[tuple[_View, Callable]], batches: Iterable[Tensor]) -> None:
    with hooked(view.hook(model, see) for view, see in watchers):
        for x in batches:
            model(x)


def level(maps: Tensor) -> Tensor:
    """(B, width, H, W) -> (B, width): the mean over pixels."""
    return maps.mean((2, 3))


class Activations:
    """A criterion: the mean of `measure` over a channel's maps."""

    def __init__(self, measure: Measure, images: int):
        self.measure, self.images = measure, images

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], sample: Sample) -> None:
        self.scores = mean(model, graph, units, sample, self.images, self.measure)

    def score(self, unit: ChannelUnits) -> Tensor:
        return self.scores[unit.path]
