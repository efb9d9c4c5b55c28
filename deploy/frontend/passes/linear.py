"""Q/DQ nodes read: ONNX's QuantizeLinear and DequantizeLinear, q = saturate(round(x / scale) + zero) and back.

ONNX operator specification, QuantizeLinear-21, DequantizeLinear-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes, called
from kerf.errors import BadInput
from kerf.kernels.tensor_type import TensorType

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
BYTES = {"uint8": "u8", "int8": "i8"}  # numpy's names of the types that kerf computes with -> its own


@dataclass(frozen=True, eq=False)
class Steps:
    """Integers q of numpy's ``dtype`` stand for scale (q - zero).

    ``scale``, ``zero``: one number, or one for each index of ``axis``; or, where ``block`` is not 0, one for each
    ``block`` indices of it.
    """

    dtype: str
    scale: np.ndarray
    zero: np.ndarray
    axis: int | None = None
    block: int = 0

    @property
    def tensor_type(self) -> TensorType | None:
        """None for other integers than bytes, and where there is more than one scale."""
        if self.axis is not None or self.dtype not in BYTES:
            return None
        return TensorType(BYTES[self.dtype], float(self.scale.item()), int(self.zero.item()))

    def same(self, other: Steps) -> bool:
        """Whether equal integers stand for equal numbers."""
        mine, theirs = self.tensor_type, other.tensor_type
        return mine is not None and mine == theirs

    def dequantise(self, integers: np.ndarray) -> np.ndarray:
        """Their numbers, in float32."""
        scale, zero = (self._spread(a, integers.shape) for a in (self.scale, self.zero))
        return ((integers.astype(np.float64) - zero) * scale).astype(np.float32)

    def quantise(self, numbers: np.ndarray) -> np.ndarray:
        """Their integers, of 8 bits."""
        scale, zero = (self._spread(a, numbers.shape) for a in (self.scale, self.zero))
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(numbers / scale) + zero, limits.min, limits.max).astype(self.dtype)

    def _spread(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if self.axis is None:
            return array.reshape(())
        if self.block:
            return np.take(np.repeat(array, self.block, self.axis), np.arange(shape[self.axis]), self.axis)
        return array.reshape([-1 if i == self.axis else 1 for i in range(len(shape))])


def steps(graph: Graph, node: onnx.NodeProto | None) -> Steps | None:
    """Of a Q/DQ node; None for any other, and where its numbers are computed, or are no float32."""
    if node is None or node.op_type not in (QUANTISE, DEQUANTISE) or node.domain not in STANDARD:
        return None
    scale, zero = (graph.constants.get(name) for name in (*node.input, "")[1:3])
    if scale is None or scale.dtype != np.float32 or (zero is None and len(node.input) > 2 and node.input[2]):
        return None
    kind = graph.types.get(node.output[0] if node.op_type == QUANTISE else node.input[0])
    if zero is None and not kind:
        return None
    dtype = zero.dtype if zero is not None else helper.tensor_dtype_to_np_dtype(kind or 0)
    zero = np.zeros(scale.shape, np.int32) if zero is None else zero
    if zero.size != scale.size:
        return None
    a, dims = attributes(node), graph.shapes.get(node.input[0])
    axis = None if scale.size == 1 or dims is None else a.get("axis", 1) % max(len(dims), 1)
    if axis is None and scale.size > 1:
        return None
    return Steps(str(dtype), scale, zero.astype(np.float64), axis, a.get("block_size", 0))


def dequantised(graph: Graph, tensor: str) -> tuple[onnx.NodeProto, Steps] | None:
    """The DequantizeLinear that makes ``tensor``; None where another node does."""
    node = graph.producer(tensor)
    found = steps(graph, node) if node is not None and node.op_type == DEQUANTISE else None
    return (node, found) if node is not None and found is not None else None


def stored(graph: Graph, tensor: str) -> np.ndarray | None:
    """A constant, of quantised ones their numbers; None for what is computed."""
    if tensor in graph.constants:
        return graph.constants[tensor]
    found = dequantised(graph, tensor)
    if found is None or found[0].input[0] not in graph.constants:
        return None
    return found[1].dequantise(graph.constants[found[0].input[0]])


def refuse(path: Path, graph: Graph) -> None:
    """Raises BadInput, which names the node, for a scale that is no positive number, a zero point of another type than
    its integers, or not as many scales as there are indices of the axis.
    """
    for node in graph.nodes:
        if node.op_type in (QUANTISE, DEQUANTISE) and node.domain in STANDARD:
            reason = _wrong(graph, node)
            if reason:
                raise BadInput(f"{path}: {node.op_type} {called(node)!r} has {reason}; quantise the network again")


def _wrong(graph: Graph, node: onnx.NodeProto) -> str | None:
    scale, zero = (graph.constants.get(name) for name in (*node.input, "")[1:3])
    if scale is not None and scale.dtype.kind == "f" and not (np.isfinite(scale).all() and (scale > 0).all()):
        worst = scale[~(np.isfinite(scale) & (scale > 0))].reshape(-1)[0]
        return f"the scale {worst}; expected positive numbers"
    if zero is not None:
        kind = graph.types.get(node.input[0] if node.op_type == DEQUANTISE else node.output[0])
        own = graph.types[node.input[2]]
        if node.op_type == DEQUANTISE and kind and kind != own:
            names = [onnx.TensorProto.DataType.Name(k).lower() for k in (own, kind)]
            return f"a zero point of {names[0]} for integers of {names[1]}; expected one type"
        if scale is not None and zero.size != scale.size:
            return f"{scale.size} scales and {zero.size} zero points; expected one of each"
    dims, a = graph.fixed_shape(node.input[0]), attributes(node)
    if scale is not None and scale.size > 1 and dims and scale.ndim == 1 and not a.get("block_size", 0):
        axis = a.get("axis", 1)
        if not -len(dims) <= axis < len(dims) or dims[axis] != scale.size:
            return f"{scale.size} scales for axis {axis} of {'x'.join(map(str, dims))}; expected one for each index"
    return None
