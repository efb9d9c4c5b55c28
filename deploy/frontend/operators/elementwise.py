"""Nodes that compute pixels from pixels, each for itself: sums, products, affine maps, activations, joined images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.operators import quantising
from kerf.deploy.frontend.operators.operation import (
    Operation,
    Refusal,
    Shape,
    constant,
    image_of,
    only_output,
    shape_of,
    type_of,
)
from kerf.deploy.frontend.passes.activations import activation_of
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.program import CHANNEL, IMAGE, PLANE, Pointwise, Step


def as_image(shape: Shape) -> tuple[int, int, int, int]:
    """(n, c, h, w), in which tensors of other ranks are a row of numbers."""
    if len(shape) != 4:
        return 1, math.prod(shape), 1, 1
    n, c, h, w = shape
    return n, c, h, w


def operation(
    shape: Shape, inputs: Sequence[str | np.ndarray], kinds: Sequence[str], steps: Sequence[Step]
) -> Operation:
    return Operation("pointwise", tuple(inputs), (shape,), {"pointwise": Pointwise(tuple(kinds), tuple(steps))})


def binary(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Of two images, or one and a number for each plane, for each channel, or for all."""
    shape = shape_of(graph, only_output(node))
    if len(node.input) != 2:
        raise Refusal(f"{node.op_type} of {len(node.input)} tensors, not two")
    kinds = [_kind(graph, name, shape) for name in node.input]
    if IMAGE not in kinds:
        raise Refusal(f"{' and '.join(str(shape_of(graph, x)) for x in node.input)} are both spread over {shape}")
    if node.op_type == "Mul" and PLANE in kinds and not _among_integers(graph, node):  # what squeeze-excite ends with
        image = kinds.index(IMAGE)
        return Operation("scale", (node.input[image], node.input[1 - image]), (shape,))
    tensors = {name: kind for name, kind in zip(node.input, kinds) if isinstance(kind, str)}
    names = sorted(tensors, key=lambda name: tensors[name] != IMAGE)  # images first
    of = tuple(names.index(name) if isinstance(kind, str) else kind for name, kind in zip(node.input, kinds))
    inputs = [_array(graph, name, shape) for name in names]
    return operation(shape, inputs, [tensors[name] for name in names], [Step(node.op_type.lower(), of)])


def _among_integers(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node's neighbours make floats of integers, or the reverse: with them it is one pass over memory."""
    after = graph.sole_consumer(node.output[0])
    made = any(quantising.dequantised(graph, name) for name in node.input)
    return made or (after is not None and after.op_type == "QuantizeLinear")


def _kind(graph: Graph, name: str, shape: Shape) -> str | float:
    """What an operand has a number for; the number, where it is one constant."""
    own = shape_of(graph, name)
    if own == shape:
        return IMAGE
    if name in graph.constants and math.prod(own) == 1 and len(own) <= len(shape):
        return float(graph.constants[name].item())
    if len(shape) == 4 and len(own) <= 4:
        four = (1,) * (4 - len(own)) + own
        if four == (*shape[:2], 1, 1) and name not in graph.constants:
            return PLANE
        if four == (1, shape[1], 1, 1):
            return CHANNEL
        if four == (*shape[:2], 1, 1):
            return PLANE
    raise Refusal(f"{name!r} is {own}, spread over {shape}")


def _array(graph: Graph, name: str, shape: Shape) -> str | np.ndarray:
    return graph.constants.get(name, name)


def activation(graph: Graph, node: onnx.NodeProto) -> Operation:
    """A node that is an activation by itself."""
    found = activation_of(graph, node)
    if found is None:
        raise Refusal(f"{node.op_type} with these numbers")
    shape_of(graph, node.input[0])
    return operation(shape_of(graph, only_output(node)), [node.input[0]], [IMAGE], [Step(found, (0,))])


def hardsigmoid(graph: Graph, node: onnx.NodeProto) -> Operation:
    """With any slope."""
    a, shape = attributes(node), shape_of(graph, only_output(node))
    steps = [Step("mul", (0, a.get("alpha", 0.2))), Step("add", (1, a.get("beta", 0.5)))]
    return operation(shape, [node.input[0]], [IMAGE], [*steps, Step(Activation("clip", 0.0, 1.0), (2,))])


def prelu(graph: Graph, node: onnx.NodeProto) -> Operation:
    """A slope below 0 for each channel: max(x, 0) + slope min(x, 0)."""
    shape, slope = shape_of(graph, only_output(node)), constant(graph, node, 1)
    kind = _kind(graph, node.input[1], shape)
    if slope is None or kind == IMAGE:
        raise Refusal("a slope for each pixel")
    inputs, kinds = ([node.input[0], slope], [IMAGE, kind]) if isinstance(kind, str) else ([node.input[0]], [IMAGE])
    first = len(inputs)
    steps = [Step("max", (0, 0.0)), Step("min", (0, 0.0))]
    steps += [Step("mul", (first + 1, 1 if isinstance(kind, str) else kind)), Step("add", (first, first + 2))]
    return operation(shape, inputs, [str(k) for k in kinds], steps)


def batch_norm(graph: Graph, node: onnx.NodeProto) -> Operation:
    """With constant statistics: x scale + shift, both of a channel."""
    shape = image_of(graph, node.output[0])
    if attributes(node).get("training_mode", 0) or any(node.output[1:]):
        raise Refusal("it is in training mode")
    given = [constant(graph, node, i) for i in range(1, 5)]
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in given)
    scale = gamma / np.sqrt(var + attributes(node).get("epsilon", 1e-5))
    numbers = [a.astype(np.float32).reshape(1, -1, 1, 1) for a in (scale, beta - mean * scale)]
    steps = [Step("mul", (0, 1)), Step("add", (3, 2))]
    return operation(shape, [node.input[0], *numbers], [IMAGE, CHANNEL, CHANNEL], steps)


def concat(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Of images, over channels; of bytes, too, and of floats that are made of bytes."""
    shape, kind = image_of(graph, only_output(node), integers=True), type_of(graph, only_output(node))
    axis = attributes(node)["axis"] % 4
    if axis != 1:
        raise Refusal(f"a concatenation over axis {axis}; kerf's is over channels, 1")
    parts = tuple(image_of(graph, name, integers=True)[1] for name in node.input)
    program = (
        Pointwise((IMAGE,), parts=parts, stored=(kind.numpy,), result=kind.numpy)
        if kind.quantised
        else Pointwise((IMAGE,), parts=parts)
    )
    whole = Operation("pointwise", tuple(node.input), (shape,), {"pointwise": program})
    return whole if kind.quantised else quantising.joined(graph, node) or whole
