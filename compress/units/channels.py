"""Channel: the granularity that makes networks narrower. A unit is one channel, with all that makes and reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.compress.network.widths import Widths
from kerf.compress.units.weights import Units
from kerf.errors import BadInput


@dataclass(frozen=True)
class ChannelUnits(Units):
    """The channels of one ChannelSet; `path` is its name."""

    channels: ChannelSet
    scales: Callable[[], Tensor]  # (norms, count) present γ of the batch norms behind the layers that make them
    widths: Widths  # of the whole network

    @property
    def gone(self) -> int:
        return self.channels.whole - self.channels.width

    def readers(self) -> list[tuple[str, int]]:
        """Where convolutions and linear layers read these channels. Raises ValueError if none does."""
        found = self.channels.columns
        if not found:
            raise BadInput(f"{self.path}: no convolution or linear layer reads its channels; leave it out with --skip")
        return found


@dataclass(frozen=True)
class Channel:
    """All channels that one layer makes alone; with ``residual`` also those that are sums of several layers' outputs.

    Published results of ResRep and RNI are without: only channels inside a block are pruned. ``scaled`` leaves out
    those that no batch norm scales, as inside squeeze-excitation.
    """

    residual: bool = False
    scaled: bool = False
    skip: tuple[str, ...] = ()  # patterns of layers to leave alone: "transition*"

    def split(self, model: nn.Module, graph: DependencyGraph, example: Any) -> tuple[ChannelUnits, ...]:
        for pattern in self.skip:
            if not any(fnmatch(s.name, pattern) for s in graph.sets):
                names = ", ".join(s.name for s in graph.sets if not s.fixed)
                raise BadInput(f"--skip {pattern} is the name of no layer; layers are {names}")
        widths = Widths.of(model, graph, example)
        return tuple(_units(model, graph, s, widths) for s in graph.sets if self._takes(model, graph, s))

    def _takes(self, model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> bool:
        makers = len(channels.makers)
        if any(fnmatch(channels.name, pattern) for pattern in self.skip):
            return False
        if channels.fixed or channels.whole == 1 or not (makers == 1 or (self.residual and makers > 1)):
            return False
        return not self.scaled or bool(_norms(model, graph, channels))


@dataclass(frozen=True)
class Foldable(Channel):
    """Channels behind which a D×D matrix can be folded away, and that are zero when its rows are.

    Not behind grouped filters, which see different inputs; not before a gate, which multiplies the constant that a dead
    channel becomes behind a depthwise filter; not where the first batch norm comes after a concatenation (DenseNet) and
    turns zero into something else.
    """

    def _takes(self, model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> bool:
        if not super()._takes(model, graph, channels):
            return False
        layers = [model.get_submodule(path.rpartition(".")[0]) for path in channels.makers]
        normalised = [path in graph.norms for path in channels.makers]
        later = any(path.endswith("running_mean") for path, _ in channels.places) and not all(normalised)
        plain = all(type(m) in (nn.Conv2d, nn.Linear) and getattr(m, "groups", 1) == 1 for m in layers)
        norms = [model.get_submodule(graph.norms[path]) for path in channels.makers if path in graph.norms]
        once = graph.reused.isdisjoint(channels.makers) and all(norm.affine for norm in norms)
        return plain and once and not later and not channels.gates


def _norms(model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> list[str]:
    """Paths of the γ that scale these channels: behind the layers that make them, if there are such.

    Before activation, as in DenseNet, a norm stands behind every concatenation that holds the channels instead.
    """
    paths = [f"{graph.norms[path]}.weight" for path in channels.makers if path in graph.norms]
    paths = [path for path in paths if (path, 0) in channels.places]  # but for those without γ
    return paths or [path for path, _ in channels.places if _is_scale(model, path)]


def _units(model: nn.Module, graph: DependencyGraph, channels: ChannelSet, widths: Widths) -> ChannelUnits:
    def rows() -> Tensor:
        parts = [by_channel(model.get_parameter(path).detach(), channels, (path, 0)) for path in channels.makers]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def scales() -> Tensor:
        paths = _norms(model, graph, channels)
        if not paths:
            raise BadInput(f"{channels.name}: no batch norm scales its channels; use a method that scores filters")
        return torch.stack([by_channel(model.get_parameter(p).detach(), channels, (p, 0)).mean(1) for p in paths])

    weights = {path: model.get_parameter(path) for path in channels.makers}
    elements = sum(w[0].numel() * channels.copies((path, 0)) for path, w in weights.items())
    device = weights[channels.makers[0]].device
    size = torch.full((channels.width,), elements, device=device)
    saved = widths.saved(widths.now, channels.name, channels.width - 1)
    macs = torch.full((channels.width,), saved, device=device)
    return ChannelUnits(channels.name, channels.width, rows, size, macs, channels, scales, widths)


def by_channel(tensor: Tensor, channels: ChannelSet, place: tuple[str, int]) -> Tensor:
    """(width, copies, …): the entries that each channel owns on the first axis of `tensor`, which stands at `place`."""
    return tensor[channels.positions(place).to(tensor.device)]


def _is_scale(model: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name == "weight" and isinstance(model.get_submodule(owner), _BatchNorm)
