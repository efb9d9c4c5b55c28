"""A network as the compiler takes it: a graph, and the layers in it that kerf has kernels for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.kernels.problem import Problem

OP = "Layer"
DOMAIN = "kerf"


@dataclass(frozen=True, eq=False)
class Layer:
    """One fused layer. weight: (O, I / groups, kh, kw) float32, bias: (O,) float32; ``problem`` has dense weights."""

    name: str
    op: str  # "conv" or "dense"
    problem: Problem
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Network:
    """A graph whose layers are kerf::Layer nodes, and those layers by node name, in order of execution."""

    path: Path
    graph: Graph
    layers: dict[str, Layer]
    weights_bytes: int  # of the file's constants

    @property
    def input(self) -> onnx.ValueInfoProto:
        return self.graph.inputs[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.graph.shapes[self.input.name])

    @property
    def sparse_layers(self) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.problem.n]
