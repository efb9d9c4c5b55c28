"""QuantizeLinear and DequantizeLinear as functions of pixels, which join those before and behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.operators.operation import Operation, Refusal, image_of, only_output, shape_of
from kerf.deploy.frontend.passes.linear import BYTES, Steps, dequantised
from kerf.deploy.frontend.passes.linear import steps as steps_of
from kerf.kernels.pointwise.program import CHANNEL, FLOAT, IMAGE, STEPS, Pointwise, Step
from kerf.kernels.pointwise.quotient import SIZES


def quantise(graph: Graph, node: onnx.NodeProto) -> Operation:
    """round(x / scale) + zero, saturated when it is stored: the quotient, as ONNX Runtime's, not by one reciprocal."""
    found, shape = _of_bytes(graph, node), shape_of(graph, node.input[0])
    if found.axis is not None:
        return _each_channel(node.input[0], found, shape)
    scale, zero = found.scale.item(), found.zero.item()
    exact = math.frexp(scale)[0] == 0.5 and math.isfinite(1 / scale)  # a power of two
    other = Step(STEPS if SIZES[0] < scale < SIZES[1] else "div", (0, scale))
    steps = [Step("mul", (0, 1 / scale)) if exact else other, Step("round", (1,))]
    steps += [Step("add", (2, float(zero)))] if zero else []
    program = Pointwise((IMAGE,), tuple(steps), result=found.dtype)
    return Operation("pointwise", (node.input[0],), (shape,), {"pointwise": program})


def _each_channel(x: str, found: Steps, shape: tuple[int, ...]) -> Operation:
    """With a scale and a zero point for each channel, as in front of depthwise layers."""
    _refuse_other_axes(found, shape)
    numbers = [np.asarray(a, np.float32).reshape(1, -1, 1, 1) for a in (found.scale, found.zero)]
    steps = Step("div", (0, 1)), Step("round", (3,)), Step("add", (4, 2))
    program = Pointwise((IMAGE, CHANNEL, CHANNEL), steps, result=found.dtype)
    return Operation("pointwise", (x, *numbers), (shape,), {"pointwise": program})


def _refuse_other_axes(found: Steps, shape: tuple[int, ...]) -> None:
    """Than that of an image's channels."""
    if found.axis != 1 or len(shape) != 4 or found.block:
        raise Refusal(f"a scale for each index of axis {found.axis} of {len(shape)} dimensions")


def dequantise(graph: Graph, node: onnx.NodeProto) -> Operation:
    """(q - zero) scale, with one scale or one for each channel."""
    found, shape = _of_bytes(graph, node), shape_of(graph, only_output(node))
    if found.axis is None:
        program = Pointwise((IMAGE,), _numbers(found), stored=(found.dtype,))
        return Operation("pointwise", (node.input[0],), (shape,), {"pointwise": program})
    _refuse_other_axes(found, shape)
    return by_channel([node.input[0]], shape, (), found.dtype, found.scale, found.zero)


def joined(graph: Graph, node: onnx.NodeProto) -> Operation | None:
    """Images of bytes of several scales, joined as floats on the way; None where an input is no such image."""
    found = [dequantised(graph, name) for name in node.input]
    kinds = [one[1] for one in found if one is not None and one[1].tensor_type is not None]
    if len(kinds) < len(found) or len({kind.dtype for kind in kinds}) > 1:
        return None
    parts = tuple(image_of(graph, name)[1] for name in node.input)
    scale = np.repeat([kind.scale.item() for kind in kinds], parts)
    zero = np.repeat([kind.zero.item() for kind in kinds], parts)
    sources = [one[0].input[0] for one in found if one is not None]
    return by_channel(sources, image_of(graph, only_output(node)), parts, kinds[0].dtype, scale, zero)


def by_channel(
    inputs: Sequence[str],
    shape: tuple[int, ...],
    parts: tuple[int, ...],
    dtype: str,
    scale: np.ndarray,
    zero: np.ndarray,
) -> Operation:
    """(q - zero) scale, with a scale and a zero point for each channel."""
    numbers = [np.asarray(a, np.float32).reshape(1, -1, 1, 1) for a in (zero, scale)]
    steps = Step("sub", (0, 1)), Step("scale", (3, 2))
    program = Pointwise((IMAGE, CHANNEL, CHANNEL), steps, parts, (dtype, FLOAT, FLOAT))
    return Operation("pointwise", (*inputs, *numbers), (shape,), {"pointwise": program})


def _of_bytes(graph: Graph, node: onnx.NodeProto) -> Steps:
    found = steps_of(graph, node)
    if found is None:
        raise Refusal("its scale or zero point is computed, or no float32")
    if found.dtype not in BYTES:
        raise Refusal(f"integers of {found.dtype}; kerf's are of 8 bits")
    return found


def _numbers(found: Steps) -> tuple[Step, ...]:
    scale, zero = found.scale.item(), found.zero.item()
    return (Step("sub", (0, float(zero))), Step("scale", (1, scale))) if zero else (Step("scale", (0, scale)),)
