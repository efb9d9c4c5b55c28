"""Factors and terms into the convolution before them, as batch norms go there.

Given: Conv with constant weight, read only by a Mul or an Add of one constant number, or of one for each channel.
Result: that Conv with scaled weight, or with another bias; zeros of the weight stay zeros.
"""

from __future__ import annotations

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph
from kerf.deploy.frontend.passes.fold_batchnorm import with_weights


def fold_affine(graph: Graph) -> None:
    """In place. PP-OCR and MobileOne have such factors and terms between a convolution and its activation."""
    for conv in [n for n in graph.nodes if n.op_type == "Conv"]:
        node: onnx.NodeProto | None = conv
        while node is not None:
            node = _folded(graph, node)


def _folded(graph: Graph, conv: onnx.NodeProto) -> onnx.NodeProto | None:
    """The convolution with the node behind it, in their place; None where that is none of those given."""
    after = graph.sole_consumer(conv.output[0])
    if after is None or after.op_type not in ("Mul", "Add") or after.domain not in STANDARD:
        return None
    weight = graph.constants.get(conv.input[1])
    has_bias = len(conv.input) > 2 and bool(conv.input[2])
    bias = graph.constants.get(conv.input[2]) if has_bias else None
    numbers = _by_channel(graph, conv, after)
    if weight is None or weight.dtype != np.float32 or (has_bias and bias is None) or numbers is None:
        return None
    old = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    if after.op_type == "Mul":
        weight = (weight * numbers.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        new = old * numbers
    else:
        new = old + numbers
    if not (np.isfinite(weight).all() and np.isfinite(new).all()):
        return None
    return with_weights(graph, conv, after, weight, new)


def _by_channel(graph: Graph, conv: onnx.NodeProto, after: onnx.NodeProto) -> np.ndarray | None:
    """The node's constant as a number for each of the convolution's channels; None where it is no such constant."""
    shape = graph.fixed_shape(conv.output[0])
    other = [graph.constants.get(name) for name in after.input if name != conv.output[0]]
    if shape is None or len(other) != 1 or other[0] is None or other[0].dtype != np.float32:
        return None
    array = other[0]
    if array.ndim > len(shape) or array.size not in (1, shape[1]):
        return None
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if array.size > 1 and full[1] != shape[1]:
        return None  # numbers for rows or columns
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (shape[1],))
