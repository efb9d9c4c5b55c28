"""What is fused into a kernel's store: bias, residual, activation, on vectors of TIR."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from kerf.kernels.pointwise.activation import PARAMETERS, Activation
from kerf.kernels.pointwise.exponential import LEAST, clip, erf, exp, expm1
from kerf.kernels.vector import splat

# Where e^v is beyond all sums with 1, so that v may be cut off: products of e^v with v stay finite.
LOW, HIGH = LEAST, 20.0


def activate(a: Activation, v, lanes: int):
    """``a`` of a vector of float32, or of a number where ``lanes`` is 1. Statements may precede the value."""
    if a.name == "none":
        return v
    return ACTIVATION[a.name](T.Bind(v), lanes, *a[1 : 1 + PARAMETERS.get(a.name, 0)])


def relu(v, lanes: int):
    return T.max(v, splat(0, lanes))


def hardsigmoid(v, lanes: int):
    return clip(v * splat(1 / 6, lanes) + splat(0.5, lanes), 0, 1, lanes)


def sigmoid(v, lanes: int):
    return splat(1, lanes) / (splat(1, lanes) + exp(splat(0, lanes) - v, lanes))


def silu(v, lanes: int):
    return _gated(v, v, lanes)


def leakyrelu(v, lanes: int, alpha: float):
    product = v * splat(alpha, lanes)
    return T.max(v, product) if 0 <= alpha <= 1 else T.Select(v < splat(0, lanes), product, v)


def elu(v, lanes: int, alpha: float):
    below = expm1(T.min(splat(0, lanes), v), lanes) * splat(alpha, lanes)
    return T.max(v, splat(0, lanes)) + below


def gelu(v, lanes: int):
    half = T.Bind(T.max(splat(-5.3, lanes), v) * splat(0.5, lanes))  # below it is 0 but for rounding
    return half + half * erf(v * splat(math.sqrt(0.5), lanes), lanes)


def gelu_tanh(v, lanes: int):
    """v (1 + tanh u) / 2, which is v sigmoid(2 u), u = sqrt(2 / pi) (v + 0.044715 v^3)."""
    v = T.Bind(T.max(splat(-HIGH, lanes), v))
    cut = T.Bind(T.min(splat(HIGH, lanes), v))
    double = 2 * math.sqrt(2 / math.pi)
    u = cut * (cut * cut * splat(0.044715 * double, lanes) + splat(double, lanes))
    return _gated(v, u, lanes)


def mish(v, lanes: int):
    """v tanh(ln(1 + e^v)), which is v n / (n + 2), n = e^v (e^v + 2)."""
    v = T.Bind(T.max(splat(LOW, lanes), v))
    power = T.Bind(exp(T.min(splat(HIGH, lanes), v), lanes))
    n = T.Bind(power * (power + splat(2, lanes)))
    return v * (n / (n + splat(2, lanes)))


def tanh(v, lanes: int):
    power = T.Bind(expm1(clip(v + v, -HIGH, HIGH, lanes), lanes))
    return power / (power + splat(2, lanes))


def _gated(v, u, lanes: int):
    """v sigmoid(u)"""
    v = T.Bind(T.max(splat(LOW, lanes), v))
    return v / (splat(1, lanes) + exp(splat(0, lanes) - u, lanes))


ACTIVATION: dict[str, Callable] = {
    "relu": relu,
    "relu6": lambda v, lanes: clip(v, 0, 6, lanes),
    "hardsigmoid": hardsigmoid,
    "hardswish": lambda v, lanes: v * hardsigmoid(v, lanes),
    "sigmoid": sigmoid,
    "silu": silu,
    "clip": lambda v, lanes, low, high: clip(v, low, high, lanes),
    "leakyrelu": leakyrelu,
    "elu": elu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "mish": mish,
    "tanh": tanh,
    "erf": lambda v, lanes: erf(v, lanes),
}
