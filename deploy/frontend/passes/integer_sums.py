"""Sums of integers in the layer that makes one of their operands.

Given: a layer of integers whose uint8 only a DequantizeLinear reads, an Add of that and another tensor of its shape,
perhaps Relu or another clip, a QuantizeLinear to uint8, each read by the next one only.
Result: that layer with the other tensor for its residual, integers where it has some. The type that it had is its
``middle``: it is still rounded to it, and its bytes are to the last bit those of the nodes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from kerf.deploy.frontend.network import DOMAIN, OP, Layer
from kerf.deploy.frontend.onnx_graph import STANDARD, Graph
from kerf.deploy.frontend.passes.activations import activation_after
from kerf.deploy.frontend.passes.drop_identities import drop_unread
from kerf.deploy.frontend.passes.integer_layers import U8, Bytes, bytes_of
from kerf.deploy.frontend.passes.linear import DEQUANTISE, QUANTISE, steps
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.pair import products
from kerf.kernels.pointwise.quotient import SIZES
from kerf.kernels.reference import activate, dequantise, quantise
from kerf.kernels.tensor_type import F32, INTEGERS, TensorType

CLIPS = ("none", "relu", "relu6", "clip")


class _Sum(NamedTuple):
    """What follows a layer, in order; ``other``: the other operand, and ``bytes`` those that it is made of."""

    nodes: tuple[onnx.NodeProto, ...]
    other: str
    bytes: Bytes | None
    activation: Activation
    type: TensorType


def integer_sums(graph: Graph, layers: dict[str, Layer]) -> dict[str, Layer]:
    """In place; the layers, in the graph's order, those with a sum in place of what they were.

    Where both operands are layers', the first of them takes the sum, and the other one's result.
    """
    found = dict(layers)
    for node in graph.nodes:
        if (node.domain, node.op_type) == (DOMAIN, OP):
            after = _sum(graph, node, found[node.name])
            if after is not None:
                found[node.name] = _with(graph, node, found[node.name], after)
    drop_unread(graph)
    return {node.name: found[node.name] for node in graph.nodes if (node.domain, node.op_type) == (DOMAIN, OP)}


def _sum(graph: Graph, node: onnx.NodeProto, layer: Layer) -> _Sum | None:
    own = layer.types.get("y")
    if own is None or layer.problem.residual or not _keeps(layer.problem.epilogue, own):
        return None
    floats = graph.sole_consumer(node.output[0])
    read = steps(graph, floats) if floats is not None and floats.op_type == DEQUANTISE else None
    add = graph.sole_consumer(floats.output[0]) if floats is not None and read is not None else None
    if floats is None or read is None or read.tensor_type != own or add is None:
        return None
    if add.op_type != "Add" or add.domain not in STANDARD or add.input[0] == add.input[1]:
        return None
    (other,) = (name for name in add.input if name != floats.output[0])
    shape = graph.fixed_shape(add.output[0])
    if other in graph.constants or graph.types.get(other) != TensorProto.FLOAT:
        return None
    if shape is None or not graph.fixed_shape(other) == graph.fixed_shape(floats.output[0]) == shape:
        return None
    activation, nodes = activation_after(graph, add.output[0])
    last = graph.sole_consumer((nodes or [add])[-1].output[0])
    found = steps(graph, last) if last is not None and last.op_type == QUANTISE else None
    y = found.tensor_type if found is not None else None
    if last is None or y is None or y.dtype != "u8" or activation.name not in CLIPS:
        return None
    whole = bytes_of(graph, other)
    kinds = (own, y) if whole is None else (own, y, whole.type)
    if not all(kind.scale is not None and SIZES[0] < kind.scale < SIZES[1] for kind in kinds):
        return None
    if whole is not None and products(own, whole.type, y, activation) is None:
        return None  # a function of its own, then
    return _Sum((floats, add, *nodes, last), other, whole, activation, y)


def _keeps(activation: Activation, kind: TensorType) -> bool:
    """Whether an activation is nothing but the bounds of the integers that its numbers become."""
    if activation.name not in CLIPS:
        return False
    low, high = INTEGERS[kind.dtype]
    beyond = activate(activation, dequantise(np.array([low - 1, high + 1]), kind))
    return tuple(quantise(beyond, kind)) == (low, high)


def _with(graph: Graph, node: onnx.NodeProto, layer: Layer, after: _Sum) -> Layer:
    """Replaces the nodes."""
    residual = after.bytes
    types = {"x": layer.types["x"], "middle": layer.types["y"], "y": after.type}
    if residual is not None:
        types["residual_type"] = residual.type
    inputs = [node.input[0], after.other if residual is None else residual.tensor]
    made = helper.make_node(OP, inputs, list(after.nodes[-1].output), name=node.name, domain=DOMAIN)
    graph.replace([node, *after.nodes], made, [] if residual is None else [residual.node])
    name, alpha, beta = after.activation
    problem = replace(
        layer.problem, activation=name, alpha=alpha, beta=beta, y=U8, middle=U8,
        residual=True, residual_type=F32 if residual is None else None,
    )  # fmt: skip
    return replace(layer, problem=problem, types=types)
