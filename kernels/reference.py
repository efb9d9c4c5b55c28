"""Slow, obvious numpy truth for every Problem. Never optimised."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import INTEGERS, TensorType


def sigmoid(v: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -v))


# By name, of float64 and the numbers alpha and beta.
ACTIVATION = {
    "none": lambda v, a, b: v,
    "relu": lambda v, a, b: np.maximum(v, 0),
    "relu6": lambda v, a, b: np.clip(v, 0, 6),
    "hardsigmoid": lambda v, a, b: np.clip(v / 6 + 0.5, 0, 1),
    "hardswish": lambda v, a, b: v * np.clip(v / 6 + 0.5, 0, 1),
    "sigmoid": lambda v, a, b: sigmoid(v),
    "silu": lambda v, a, b: v * sigmoid(v),
    "clip": lambda v, a, b: np.clip(v, a, b),
    "leakyrelu": lambda v, a, b: np.where(v < 0, a * v, v),
    "elu": lambda v, a, b: np.where(v < 0, a * np.expm1(np.minimum(v, 0)), v),
    "gelu": lambda v, a, b: v * (0.5 + 0.5 * erf(v / math.sqrt(2))),
    "gelu_tanh": lambda v, a, b: v * sigmoid(math.sqrt(8 / math.pi) * (v + 0.044715 * v**3)),
    "mish": lambda v, a, b: v * np.tanh(np.logaddexp(0, v)),
    "tanh": lambda v, a, b: np.tanh(v),
    "erf": lambda v, a, b: erf(v),
}


def erf(v: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(v)


def activate(a: Activation, v: np.ndarray) -> np.ndarray:
    """``a`` of an array, in float64."""
    return ACTIVATION[a.name](np.asarray(v, np.float64), a.alpha, a.beta)


def conv2d(p: Problem, x: np.ndarray, w: np.ndarray, bias: np.ndarray, residual: np.ndarray | None = None):
    """y (n, O, Ho, Wo) in float64 from x (n, I, H, W), w (O, I/groups, kh, kw), bias (O,)."""
    y = _sums(p, x.astype(np.float64), w.astype(np.float64)) + bias.astype(np.float64).reshape(1, -1, 1, 1)
    if residual is not None:
        y += residual
    return activate(p.epilogue, y)


def conv2d_integer(
    p: Problem,
    x: np.ndarray,
    w: np.ndarray,
    weight_scale: np.ndarray,
    bias: np.ndarray,
    types: Mapping[str, TensorType],
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """y (n, O, Ho, Wo), of the type of ``p.y``, from integers x (n, I, H, W) and w (O, I/groups, kh, kw).

    Sums of (x - zero) w are exact; the rest is in float32: sum * (scale_x * weight_scale (O,)) + bias (O,), rounded
    once, + residual, activation, and y = saturate(round(value / scale_y) + zero_y), halves to even, as ONNX's
    QuantizeLinear; before the residual the same to ``p.middle`` and back, where it has one. ``types``: scales and zero
    points of x, of y, of the residual and of the middle, where they are integers, by the fields of Problem.
    Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, eq. 7.
    """
    sums = _sums(p, x.astype(np.int64) - (types["x"].zero or 0), w.astype(np.int64))
    steps = (np.float32(types["x"].scale) * weight_scale.astype(np.float32)).reshape(1, -1, 1, 1)
    exact = sums.astype(np.float32).astype(np.float64) * steps + bias.astype(np.float64).reshape(1, -1, 1, 1)
    value = exact.astype(np.float32)
    if p.middle is not None:
        value = dequantise(quantise(value, types["middle"]), types["middle"])
    if residual is not None:
        kind = types.get("residual_type", types.get("y"))
        value = value + (dequantise(residual, kind) if residual.dtype.kind in "iu" and kind else residual)
    value = activate(p.epilogue, value).astype(np.float32)
    return quantise(value, types["y"]) if p.y.quantised else value


def quantise(value: np.ndarray, kind: TensorType) -> np.ndarray:
    """ONNX's QuantizeLinear of float32: of a ``kind`` with one scale."""
    steps = np.rint(value.astype(np.float32) / np.float32(kind.scale))
    return np.clip(steps + np.float32(kind.zero or 0), *INTEGERS[kind.dtype]).astype(kind.numpy)


def dequantise(integers: np.ndarray, kind: TensorType) -> np.ndarray:
    """ONNX's DequantizeLinear, in float32."""
    return (integers.astype(np.int32) - (kind.zero or 0)).astype(np.float32) * np.float32(kind.scale)


def _sums(p: Problem, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution alone, in the type of x and w, padded with 0."""
    top, left, bottom, right = p.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = np.zeros(p.out_shape, x.dtype)
    ho, wo = p.out_height, p.out_width
    og, ig = p.out_channels // p.groups, p.in_channels // p.groups
    for g in range(p.groups):
        out, inp = slice(g * og, (g + 1) * og), slice(g * ig, (g + 1) * ig)
        for r in range(p.kernel[0]):
            for s in range(p.kernel[1]):
                r0, s0 = r * p.dilation[0], s * p.dilation[1]
                window = x[:, inp, r0 : r0 + ho * p.stride[0] : p.stride[0], s0 : s0 + wo * p.stride[1] : p.stride[1]]
                y[:, out] += np.einsum("oi,nihw->nohw", w[out, :, r, s], window)
    return y
