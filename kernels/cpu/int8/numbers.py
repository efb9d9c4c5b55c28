"""What turns a layer's integer sums into its output, as arrays that its kernel is given.

sums of (q - zero) w are real numbers / (scale of x, scale of w): value = float32(sum) * multiplier + bias, both (O,).
Of an output of bytes these are in its steps, zero point included, so that a clip, a rounding and a saturation are left;
where the activation is more than a clip they are real, and ``inverse`` and ``zero`` follow it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import INTEGERS, TensorType

# Places in the array "numbers".
LOW, HIGH, INVERSE, ZERO, RESIDUAL_SCALE, RESIDUAL_SHIFT = range(6)
CLIPS = {"none": (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


def clips(p: Problem) -> bool:
    """Whether the activation is a clip, which the saturation of an output of bytes does by the way."""
    return p.activation in (*CLIPS, "clip")


def arrays(
    p: Problem,
    w: np.ndarray,
    bias: np.ndarray,
    weight_scale: np.ndarray,
    types: Mapping[str, TensorType],
    signed: bool = False,
) -> dict[str, np.ndarray]:
    """``w`` (O, I / groups, kh, kw) int8; ``bias`` (O,) and ``weight_scale`` (O,) float32; ``types``: those of Layer.

    start (O,) int32: what sums begin with, for the zero point of x; ``signed``: of kernels that take pixels less 128.
    """
    x, y = types["x"], types.get("y")
    zero = (x.zero or 0) - (128 if signed else 0)
    total = w.astype(np.int64).reshape(len(w), -1).sum(axis=1)
    multiplier = np.float64(x.scale) * weight_scale.astype(np.float64)
    numbers, offset = np.zeros(6, np.float32), bias.astype(np.float64)
    step, shift = 1.0, 0.0  # of what the multiplier and the bias give
    if y is not None and y.scale is not None:
        low, high = INTEGERS[y.dtype]
        numbers[[LOW, HIGH, INVERSE, ZERO]] = low, high, 1 / y.scale, y.zero or 0
        if clips(p):
            step, shift = y.scale, float(y.zero or 0)
            bounds = (p.alpha, p.beta) if p.activation == "clip" else CLIPS[p.activation]
            numbers[[LOW, HIGH]] = [np.rint(np.clip(b / step + shift, low, high)) for b in bounds]  # kernels cut them
    residual = types.get("residual_type", y) if p.residual and (p.residual_type or p.y).quantised else None
    if residual is not None and residual.scale is not None:
        numbers[RESIDUAL_SCALE] = residual.scale / step
        numbers[RESIDUAL_SHIFT] = -(residual.zero or 0) * residual.scale / step
    elif p.residual:
        numbers[RESIDUAL_SCALE] = 1 / step
    return {
        "start": (-zero * total).astype(np.int32),
        "multiplier": (multiplier / step).astype(np.float32),
        "bias": (offset / step + shift).astype(np.float32),
        "numbers": numbers,
        "zero": np.array([x.zero or 0], np.uint8),
    }
