"""A network as the compiler takes it: a graph, and the layers in it that kerf has kernels for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.errors import BadInput
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import TensorType

OP = "Layer"
DOMAIN = "kerf"


@dataclass(frozen=True, eq=False)
class Layer:
    """One fused layer. weight: (O, I / groups, kh, kw), bias: (O,) float32; ``problem`` has dense weights.

    ``types`` holds what the problem's types leave out, scales and zero points: an entry for each that is quantised, by
    the field's name. ``weight_scale`` (O,) goes with weights that have a scale per output channel.
    """

    name: str
    op: str  # "conv" or "dense"
    problem: Problem
    weight: np.ndarray
    bias: np.ndarray
    types: Mapping[str, TensorType] = field(default_factory=dict)
    weight_scale: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, kind in self.problem.types.items():
            own = self.types.get(name)
            if own is None and kind.scale is not None:
                raise BadInput(f"{self.name}: {name} is {kind.dtype} and has no scale; give types[{name!r}]")
            if own is not None and own.unit != kind:
                raise BadInput(f"{self.name}: {name} is {own}, but {kind} in its problem")
        scales = None if self.weight_scale is None else self.weight_scale.shape
        expected = None if self.problem.w.axis is None else (self.problem.out_channels,)
        if scales != expected:
            raise BadInput(f"{self.name}: scales of its weights {scales}; expected {expected}, one per output channel")


@dataclass(frozen=True)
class Value:
    """A tensor that a network takes."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A graph whose layers are kerf::Layer nodes, and those layers by node name, in order of execution."""

    path: Path
    graph: Graph
    layers: dict[str, Layer]
    weights_bytes: int  # of the file's constants

    @property
    def inputs(self) -> tuple[Value, ...]:
        """One, as long as convert refuses others."""
        return tuple(Value(i.name, self.graph.shape(i.name)) for i in self.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names; one, as long as convert refuses others."""
        return tuple(o.name for o in self.graph.outputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the only input."""
        (image,) = self.inputs
        return image.shape

    @property
    def sparse_layers(self) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.problem.n]
