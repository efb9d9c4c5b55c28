"""What is fused into a kernel's store: bias, residual, activation, on vectors of TIR."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.vector import splat


def clip(v, low: float, high: float, lanes: int):
    return T.min(T.max(v, splat(low, lanes)), splat(high, lanes))


def sigmoid(v, lanes: int):
    return splat(1, lanes) / (splat(1, lanes) + tirx.exp(splat(0, lanes) - v))


def hardsigmoid(v, lanes: int):
    return clip(v * splat(1 / 6, lanes) + splat(0.5, lanes), 0, 1, lanes)


ACTIVATION = {
    "none": lambda v, lanes: v,
    "relu": lambda v, lanes: T.max(v, splat(0, lanes)),
    "relu6": lambda v, lanes: clip(v, 0, 6, lanes),
    "hardsigmoid": hardsigmoid,
    "hardswish": lambda v, lanes: v * hardsigmoid(v, lanes),
    "sigmoid": sigmoid,
    "silu": lambda v, lanes: v * sigmoid(v, lanes),
}
