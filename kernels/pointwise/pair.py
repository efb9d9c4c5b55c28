"""Two bytes that are added as ONNX's nodes add them, in two operations: q = round(a (m - zero of m) + b r + c).

DequantizeLinear of both, Add, a clip and QuantizeLinear are a function of two bytes, of 65,536 values. In float32 its
sums lie within some 1e-5 of a step of the exact ones, so that few pairs lie so near to a half that it matters how they
are rounded; numbers a, b and c some last places from the exact ones give those the nodes' bytes, too. All are tried.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.reference import activate, dequantise, quantise
from kerf.kernels.tensor_type import INTEGERS, TensorType

MOST = 2.0**20  # steps of the sum in one of an operand: what is rounded to bytes then fits 32 bits
NEAR = 1e-3  # of a step, from a half: what float32 may round otherwise
FEW = 100  # pairs that are wrong by the nearest numbers: more are halves, which no others have right
TRIES, PLACES = 4096, 15  # numbers drawn, and how many last places from the exact ones

Numbers = tuple[np.float32, np.float32, np.float32]


@lru_cache(maxsize=256)
def products(m: TensorType, r: TensorType, y: TensorType, clip: Activation) -> Numbers | None:
    """(a, b, c) with which fma(m - zero, a, fma(r, b, c)), rounded half to even and saturated, is what the nodes give
    for every two integers of types ``m`` and ``r``; None where none were found, as where many sums meet halves.
    """
    assert m.scale is not None
    assert r.scale is not None
    assert y.scale is not None
    one, other = (np.arange(low, high + 1) for low, high in (INTEGERS[m.dtype], INTEGERS[r.dtype]))
    one, other = (v.ravel() for v in np.meshgrid(one, other))
    truth = quantise(activate(clip, dequantise(one, m) + dequantise(other, r)), y)
    least, most = int(truth.min()), int(truth.max())
    a, b = (np.float64(np.float32(t.scale)) / np.float64(np.float32(y.scale)) for t in (m, r))
    if max(a, b) > MOST:
        return None
    one, c = one - (m.zero or 0), (y.zero or 0) - b * (r.zero or 0)
    exact = one * a + other * b + c
    near = (np.abs(exact - np.floor(exact) - 0.5) < NEAR) & (exact > least - 1) & (exact < most + 1)
    numbers = np.float32(a), np.float32(b), np.float32(c)
    wrong = _rounded(one, other, *numbers, least, most) != truth
    if not wrong.any():
        return numbers
    if wrong.sum() > FEW or wrong[~near].any():
        return None
    places = np.random.default_rng(0).integers(-PLACES, PLACES + 1, (TRIES, 3, 1))
    nearest = np.array(numbers)[None, :, None]
    tried = nearest + places * np.spacing(np.abs(nearest))
    found = _rounded(one[near], other[near], tried[:, 0], tried[:, 1], tried[:, 2], least, most)
    for i in np.flatnonzero((found == truth[near]).all(axis=1)):
        numbers = np.float32(tried[i, 0, 0]), np.float32(tried[i, 1, 0]), np.float32(tried[i, 2, 0])
        if (_rounded(one, other, *numbers, least, most) == truth).all():
            return numbers
    return None


def _rounded(m: np.ndarray, r: np.ndarray, a, b, c, least: int, most: int) -> np.ndarray:
    """In long doubles, of which one that is rounded to a float is what fma gives."""
    inner = (np.longdouble(r) * b + c).astype(np.float32)
    return np.clip(np.rint((np.longdouble(m) * a + inner).astype(np.float32)), least, most).astype(int)
