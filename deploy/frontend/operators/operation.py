"""What a node asks of one of kerf's own functions, and the questions that its reading puts to the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.errors import Unsupported
from kerf.kernels.tensor_type import F32, TensorType

Shape = tuple[int, ...]


class Refusal(Unsupported):
    """Why kerf has no function for a node: one clause."""


@dataclass(frozen=True, eq=False)
class Operation:
    """``function`` is a key of kerf.deploy.compiler.operators.EMIT, ``inputs`` are what it takes, tensors of the graph
    and constants, in order, ``shapes`` those of its results, ``arguments`` what else it has to know.
    """

    function: str
    inputs: tuple[str | np.ndarray, ...]
    shapes: tuple[Shape, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[str]:
        """Of its inputs those that are no constants."""
        return [name for name in self.inputs if isinstance(name, str)]

    @property
    def shape(self) -> Shape:
        """Of the first result."""
        return self.shapes[0]


TYPES = {
    onnx.TensorProto.FLOAT: F32,
    onnx.TensorProto.UINT8: TensorType("u8", 1.0, 0),
    onnx.TensorProto.INT8: TensorType("i8", 1.0, 0),
}


def type_of(graph: Graph, tensor: str) -> TensorType:
    """Without its scale. Raises Refusal for a tensor of neither float32 nor bytes."""
    kind = graph.types.get(tensor, onnx.TensorProto.FLOAT)
    if kind not in TYPES:
        raise Refusal(f"{tensor!r} is {onnx.TensorProto.DataType.Name(kind).lower()}, neither float32 nor bytes")
    return TYPES[kind]


def shape_of(graph: Graph, tensor: str, integers: bool = False) -> Shape:
    """Of a tensor of float32, or of bytes where ``integers`` may be. Raises Refusal for one that has another type, or
    no fixed size.
    """
    if not integers and type_of(graph, tensor) != F32:
        kind = graph.types[tensor]
        raise Refusal(f"{tensor!r} is {onnx.TensorProto.DataType.Name(kind).lower()}, not float32")
    type_of(graph, tensor)
    shape = graph.fixed_shape(tensor)
    if shape is None:
        raise Refusal(f"the shape of {tensor!r} is not known when the network is compiled")
    return shape


def image_of(graph: Graph, tensor: str, integers: bool = False) -> tuple[int, int, int, int]:
    """As shape_of, of a tensor (n, c, h, w). Raises Refusal for one of other dimensions, too."""
    shape = shape_of(graph, tensor, integers)
    if len(shape) != 4:
        raise Refusal(f"{tensor!r} has {len(shape)} dimensions, not the 4 of images")
    n, c, h, w = shape
    return n, c, h, w


def row_or_image_of(graph: Graph, tensor: str, integers: bool = False) -> tuple[int, int, int, int]:
    """As image_of; a tensor (n, c, length) is an image of one row."""
    shape = shape_of(graph, tensor, integers)
    if len(shape) != 3:
        return image_of(graph, tensor, integers)
    n, c, length = shape
    return n, c, 1, length


def constant(graph: Graph, node: onnx.NodeProto, index: int) -> np.ndarray | None:
    """The node's input of this index; None where it is left out. Raises Refusal for one that is computed."""
    if len(node.input) <= index or not node.input[index]:
        return None
    if node.input[index] not in graph.constants:
        raise Refusal(f"{node.input[index]!r} is computed when the network runs")
    return graph.constants[node.input[index]]


def only_output(node: onnx.NodeProto) -> str:
    """Raises Refusal where more than the first output is asked for."""
    if any(node.output[1:]):
        raise Refusal(f"it has {len(node.output)} outputs")
    return node.output[0]
