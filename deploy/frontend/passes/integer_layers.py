"""Layers of integers.

Given: a layer, fused, whose weights are a DequantizeLinear of a constant and whose input is one of a tensor of bytes
with one scale; perhaps a QuantizeLinear that alone reads it.
Result: that layer on the integers themselves: int8 weights with a scale for each output channel, uint8 images. What
does not fit, such as weights further from their zero point than int8 reaches, stays a layer of floats and says why.

Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.network import DOMAIN, OP, Layer
from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.passes.drop_identities import drop_unread
from kerf.deploy.frontend.passes.linear import QUANTISE, Steps, dequantised, steps
from kerf.deploy.frontend.passes.unsigned import LAYERS
from kerf.errors import Unsupported
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, INTEGERS, TensorType

U8, I8 = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
MOST = 2.0**30  # steps of an output that sums may have: in floats they still fit 32 bits, zero point included
SYMMETRIC = {"int8": 0, "uint8": 128}  # the zero point of weights that are integers around 0


class _Unfit(Unsupported):
    """Why a layer stays one of floats."""


class Bytes(NamedTuple):
    """A tensor of uint8, its type, and the node that makes floats of it."""

    tensor: str
    type: TensorType
    node: onnx.NodeProto


def integer_layers(graph: Graph, layers: dict[str, Layer]) -> dict[str, Layer]:
    """In place; the layers, those of integers in place of what they were."""
    found = dict(layers)
    for node in graph.nodes:
        if (node.domain, node.op_type) != (DOMAIN, OP):
            continue
        weighted = next(n for n in graph.originals(node) if n.op_type in LAYERS)
        weight = dequantised(graph, weighted.input[1])
        if weight is None:
            continue
        try:
            found[node.name] = _of_integers(graph, node, layers[node.name], weighted, weight[1])
        except _Unfit as reason:
            found[node.name] = replace(layers[node.name], floats=str(reason))
    drop_unread(graph)
    return found


def _of_integers(graph: Graph, node: onnx.NodeProto, layer: Layer, weighted: onnx.NodeProto, weight: Steps) -> Layer:
    """Replaces the node. Raises _Unfit."""
    x = bytes_of(graph, node.input[0])
    if x is None:
        raise _Unfit("an input that is not quantised to 8 bits with one scale")
    integers, scale = _weights(layer, weighted, weight)
    residual = bytes_of(graph, node.input[1]) if layer.problem.residual else None
    types, inputs = {"x": x.type}, [x.tensor, *node.input[1:]]
    before = [x.node]
    if residual is not None:
        types["residual_type"], inputs[1] = residual.type, residual.tensor
        before.append(residual.node)
    after = graph.sole_consumer(node.output[0])
    behind = steps(graph, after) if after is not None and after.op_type == QUANTISE else None
    y = behind.tensor_type if behind is not None else None
    old = [node]
    reach = _reach(layer, integers, scale, [t for t in (x.type, residual and residual.type) if t])
    if after is not None and y is not None and y.dtype == "u8" and y.scale is not None and reach < MOST * y.scale:
        types["y"] = y
        old.append(after)
    made = helper.make_node(OP, inputs, list(old[-1].output), name=node.name, domain=DOMAIN)
    graph.replace(old, made, before)
    problem = _problem(layer.problem, "y" in types, residual is not None)
    return replace(layer, problem=problem, weight=integers, weight_scale=scale, types=types)


def _reach(layer: Layer, integers: np.ndarray, scale: np.ndarray, kinds: list[TensorType]) -> float:
    """What no output of the layer is larger than, before its activation; ``kinds``: of x, and of a residual."""
    x, *others = (255.0 * (kind.scale or 0) for kind in kinds)
    products = np.abs(integers.astype(np.float64)).reshape(len(integers), -1).sum(axis=1) * scale * x
    return float((products + np.abs(layer.bias)).max()) + sum(others)


def _problem(p: Problem, quantised: bool, residual: bool) -> Problem:
    y = U8 if quantised else F32
    own = (U8 if residual else F32) if p.residual else y
    return replace(p, x=U8, w=I8, y=y, residual_type=own if own != y else None)


def bytes_of(graph: Graph, tensor: str) -> Bytes | None:
    """The uint8 that a tensor of floats is made of; None where it is not."""
    found = dequantised(graph, tensor)
    kind = found[1].tensor_type if found is not None else None
    if found is None or kind is None or kind.dtype != "u8" or found[0].input[0] in graph.constants:
        return None
    return Bytes(found[0].input[0], kind, found[0])


def _weights(layer: Layer, weighted: onnx.NodeProto, weight: Steps) -> tuple[np.ndarray, np.ndarray]:
    """(int8 in the shape of the layer's weights, scales (O,)). Raises _Unfit."""
    if weight.dtype not in SYMMETRIC or weight.block:
        raise _Unfit(f"{weight.dtype} weights{' with a scale for each block' if weight.block else ''}")
    outputs = 0
    if weighted.op_type != "Conv":
        outputs = int(weighted.op_type == "MatMul" or not attributes(weighted).get("transB", 0))
    if weight.axis not in (None, outputs):
        raise _Unfit(f"weights with scales of axis {weight.axis}, not of output channels, {outputs}")
    scale = np.broadcast_to(weight.scale.reshape(-1), (layer.problem.out_channels,)).astype(np.float32)
    spread = scale.astype(np.float64).reshape(-1, 1, 1, 1)
    integers = np.rint(layer.weight / spread)
    if not np.array_equal((integers * spread).astype(np.float32), layer.weight):
        raise _Unfit("scales of weights that are too small for float32")
    low, high = INTEGERS["i8"]
    if integers.size and not low <= integers.min() <= integers.max() <= high:  # differences from the zero point
        other = weight.zero[weight.zero != SYMMETRIC[weight.dtype]].reshape(-1)[0]
        raise _Unfit(f"{weight.dtype} weights with zero point {int(other)}, not {SYMMETRIC[weight.dtype]}")
    return integers.astype(np.int8), scale
