"""MACs as a function of widths: what a network would cost with fewer channels, without building it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from kerf.compress.network.cost import positions
from kerf.compress.network.graph import DependencyGraph

Number = TypeVar("Number", int, float, Tensor)


@dataclass(frozen=True)
class _Layer:
    """MACs of one convolution or linear layer: each · (outputs) · (inputs), both sums of widths."""

    each: int  # positions · kh · kw
    outputs: tuple[tuple[str, int], ...]  # (set, entries per channel)
    inputs: tuple[tuple[str, int], ...]
    fixed_outputs: int  # entries of axis 0 that no set owns: of a layer that could not be followed
    fixed_inputs: int  # entries of axis 1 that are no channels: the one of a depthwise filter

    def macs(self, widths: Mapping[str, Number]) -> Number:
        outputs = sum(widths[name] * copies for name, copies in self.outputs) + self.fixed_outputs
        inputs = sum(widths[name] * copies for name, copies in self.inputs) + self.fixed_inputs
        return cast(Number, self.each * outputs * inputs)


@dataclass(frozen=True)
class Widths:
    """How many channels every set has, and what that costs in multiply-accumulates per image."""

    now: Mapping[str, int]  # set -> width
    layers: Mapping[str, _Layer]  # weight path ->
    whole: Mapping[str, int]  # set -> width when the network was traced

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, graph: DependencyGraph, example: Any) -> "Widths":
        """``example`` is an input (1, …), a tuple or a dict of such."""
        sides: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
        for channels in graph.sets:
            for place in channels.places:
                sides[place].append((channels.name, channels.copies(place)))
        layers = {}
        for path, times in positions(model, example).items():
            weight = model.get_parameter(path)
            outputs, inputs = tuple(sides[path, 0]), tuple(sides[path, 1])
            area = weight[0, 0].numel()
            rows, columns = weight.shape[:2]
            layers[path] = _Layer(times * area, outputs, inputs, 0 if outputs else rows, 0 if inputs else columns)
        whole = {channels.name: channels.whole for channels in graph.sets}
        return cls({channels.name: channels.width for channels in graph.sets}, layers, whole)

    def uncut(self) -> "Widths":
        """Of the network as it was traced."""
        return replace(self, now=self.whole)

    @cached_property
    def dense(self) -> int:
        return self.macs({})

    def macs(self, widths: Mapping[str, Number]) -> Number:
        """With these widths in place of the present ones; expected widths, tensors with a gradient, are as good."""
        every = cast(Mapping[str, Number], {**self.now, **widths})
        return cast(Number, sum(layer.macs(every) for layer in self.layers.values()))

    @cached_property
    def _touched(self) -> dict[str, list[_Layer]]:
        touched = defaultdict(list)
        for layer in self.layers.values():
            for name in {name for name, _ in (*layer.outputs, *layer.inputs)}:
                touched[name].append(layer)
        return touched

    def saved(self, widths: Mapping[str, int], name: str, width: int) -> int:
        """MACs that go when the set `name`, of a network with these (all) widths, is narrowed to `width`."""
        narrow = {**widths, name: width}
        return sum(layer.macs(widths) - layer.macs(narrow) for layer in self._touched[name])
