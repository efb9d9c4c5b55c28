"""Masks while training goes on: the network computes what it will when the masked units are gone.

Parameters keep their values and names; hooks act on what layers read and give. A masked model is not to be copied.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.units.channels import ChannelUnits


class ChannelMasks:
    """Zeroes channels behind the layers that make them, and again behind every depthwise layer and batch norm.

    A batch norm would turn zeros into β; with the mask behind it, masked and cut networks have the same outputs. In a
    loop that can, channels are cut at once, so that there is nothing to mask and the steps that follow cost less.
    """

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def attach(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        units: Sequence[ChannelUnits],
        cut: Callable[..., tuple[DependencyGraph, Sequence[ChannelUnits]]] | None = None,
    ) -> None:
        """Everything is kept at first. ``cut`` is the plan's, of a method that has its channels cut on the way."""
        self.cut = cut
        device = next(model.parameters()).device
        self._begin(units, device)
        for unit in units if cut is None else ():
            self.entries.append([])
            for place in masked_at(model, graph, unit):
                module = place[0].rpartition(".")[0]
                self.factors.setdefault(module, torch.ones(len(unit.channels.places[place]), device=device))
                self.entries[-1].append((module, unit.channels.positions(place).to(device)))
        for path in self.factors:
            self.handles.append(model.get_submodule(path).register_forward_hook(self._hook(path)))

    def _begin(self, units: Sequence[ChannelUnits], device: torch.device) -> None:
        self.kept = [torch.ones(u.count, dtype=torch.bool, device=device) for u in units]  # True = keep
        self.factors: dict[str, Tensor] = {}  # module -> (C,) of its outputs
        self.entries: list[list[tuple[str, Tensor]]] = []  # of each unit: module, (width, copies)

    def drop(self, units: Sequence[ChannelUnits], keep: Sequence[Tensor]) -> Sequence[ChannelUnits]:
        """Masks what ``keep`` leaves out, or cuts it; the units from now on."""
        if self.cut is None:
            self.keep(keep)
            return units
        _, left = self.cut(units, keep)
        self._begin(left, self.kept[0].device)
        return left

    def _hook(self, path: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
            return output * self.factors[path].to(output.dtype).view(-1, *[1] * (output.ndim - 2))

        return hook

    def keep(self, kept: Sequence[Tensor]) -> None:
        """bool (count,) for each unit."""
        for mask, new in zip(self.kept, kept, strict=True):
            mask.copy_(new)
        for mask, entries in zip(self.kept, self.entries):
            for path, positions in entries:
                self.factors[path][positions] = mask[:, None].to(self.factors[path]).expand(positions.shape)

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def masked_at(model: nn.Module, graph: DependencyGraph, unit: ChannelUnits) -> list[tuple[str, int]]:
    """Places of these channels in layers behind which they have to be zeroed, one for each layer."""
    found: dict[str, tuple[str, int]] = {}
    for path, axis in unit.channels.places:
        owner = path.rpartition(".")[0]
        kind = isinstance(model.get_submodule(owner), nn.Conv2d | nn.Linear | _BatchNorm)
        if axis == 0 and kind and path not in graph.norms:  # else a norm, a place too, comes right behind
            found.setdefault(owner, (path, axis))
    return list(found.values())


class Shadows:
    """Layers compute with `value(path, weight)` in place of their weight, in training and in evaluation."""

    def __init__(self, value: Callable[[str, Tensor], Tensor]):
        self.value, self.handles = value, list[RemovableHandle]()

    def attach(self, model: nn.Module, paths: Iterable[str]) -> None:
        """Of the weights at these paths, "layer1.0.conv1.weight"."""
        for path in paths:
            owner, _, name = path.rpartition(".")
            module = model.get_submodule(owner)

            def cover(module: nn.Module, _: tuple, path: str = path, name: str = name) -> None:
                # an entry of the instance hides the parameter, which keeps its name and its place
                module.__dict__[name] = self.value(path, module.get_parameter(name))

            def uncover(module: nn.Module, *_: object, name: str = name) -> None:
                module.__dict__.pop(name, None)

            self.handles.append(module.register_forward_pre_hook(cover))
            self.handles.append(module.register_forward_hook(uncover, always_call=True))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
