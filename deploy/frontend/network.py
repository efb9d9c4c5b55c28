"""A network as the compiler takes it: a graph, and the layers in it that kerf has kernels for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import OWN, Graph, Value
from kerf.errors import BadInput
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import TensorType

OP = "Layer"
DOMAIN = OWN
KERF = "kerf"  # as an engine


@dataclass(frozen=True, eq=False)
class Layer:
    """One fused layer. weight: (O, I / groups, kh, kw), bias: (O,) float32; ``problem`` has dense weights.

    ``types`` holds what the problem's types leave out, scales and zero points: an entry for each that is quantised, by
    the field's name. ``weight_scale`` (O,) goes with weights that have a scale per output channel. ``floats``: why a
    layer whose weights the file has quantised is one of floats.
    """

    name: str
    op: str  # "conv" or "dense"
    problem: Problem
    weight: np.ndarray
    bias: np.ndarray
    types: Mapping[str, TensorType] = field(default_factory=dict)
    weight_scale: np.ndarray | None = None
    floats: str = ""

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

    @property
    def apart(self) -> int:
        """Steps of bytes that two right computations may differ by: one, where a sum meets a half and they round
        otherwise; of a layer with a middle type what one step of that is.
        """
        middle, y = self.types.get("middle"), self.types.get("y")
        if middle is None or y is None or middle.scale is None or y.scale is None:
            return 1
        return math.ceil(middle.scale / y.scale)


@dataclass(frozen=True, eq=False)
class Piece:
    """Nodes that one engine runs in one call. inputs, outputs: names of tensors, constants left out."""

    engine: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def key(self) -> str:
        """The same for pieces of equal nodes."""
        return self.nodes[0].output[0] if self.nodes else ""

    @property
    def layers(self) -> list[str]:
        """Names of kerf's layers in it."""
        return [node.name for node in self.nodes if node.domain == DOMAIN and node.op_type == OP]


@dataclass(frozen=True)
class Network:
    """A graph whose layers are kerf::Layer nodes, and those layers by node name, in order of execution.

    ``pieces``: what runs it, in order; empty, as convert leaves it, stands for one piece of kerf's with everything.
    """

    path: Path
    graph: Graph
    layers: dict[str, Layer]
    weights_bytes: int  # of the file's constants

    pieces: tuple[Piece, ...] = ()

    @property
    def inputs(self) -> tuple[Value, ...]:
        return tuple(self.graph.described(i.name) for i in self.graph.inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self.graph.described(o.name) for o in self.graph.outputs)

    @property
    def run_by(self) -> tuple[Piece, ...]:
        """``pieces``, or the one that they stand for, with the file's order of inputs and outputs."""
        if self.pieces:
            return self.pieces
        ends = [tuple(v.name for v in values) for values in (self.inputs, self.outputs)]
        return (Piece(KERF, tuple(self.graph.nodes), *ends),)

    @property
    def engine(self) -> str:
        """ "kerf", or the dense engine that runs all of it."""
        engines = {piece.engine for piece in self.run_by}
        return KERF if KERF in engines else engines.pop()

    @property
    def own(self) -> tuple[Network, ...]:
        """kerf's pieces, each as a network."""
        return tuple(self.part(piece) for piece in self.run_by if piece.engine == KERF)

    def part(self, piece: Piece) -> Network:
        """One of kerf's pieces as a network."""
        graph = self.graph.part(piece.nodes, piece.inputs, piece.outputs)
        layers = {name: self.layers[name] for name in piece.layers}
        return replace(self, graph=graph, layers=layers, pieces=())

    @property
    def sparse_layers(self) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.problem.n]
