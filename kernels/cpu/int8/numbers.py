"""What turns a layer's integer sums into its output, as arrays that its kernel is given.

sums of (q - zero) w are real numbers / (scale of x, scale of w): value = float32(sum) * multiplier + bias, both (O,).
Of an output of bytes these are in its steps, zero point included, so that a clip, a rounding and a saturation are left;
where the activation is more than a clip they are real, and ``inverse`` and ``zero`` follow it.

Of a problem with a middle type they are in its steps. The sum of two bytes is then two products that are what ONNX's
DequantizeLinear, Add, QuantizeLinear give of every two (kerf.kernels.pointwise.pair); where one is a float what follows
is float32's, operation by operation, as it is there. The bytes are those of a layer and a function behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kerf.kernels.pointwise.exponential import ROUND
from kerf.kernels.pointwise.pair import products
from kerf.kernels.pointwise.quotient import reciprocal
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import INTEGERS, TensorType

# Places in the array "numbers"; the last ones are there with a middle type alone.
LOW, HIGH, INVERSE, ZERO, RESIDUAL_SCALE, RESIDUAL_SHIFT = range(6)
INVERSE_REST, MIDDLE_LOW, MIDDLE_HIGH, MIDDLE_SCALE, MIDDLE_ZERO = range(6, 11)
CLIPS = {"none": (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


def clips(p: Problem) -> bool:
    """Whether the activation is a clip, which the saturation of an output of bytes does by the way."""
    return p.activation in (*CLIPS, "clip")


def of_pairs(p: Problem) -> bool:
    """Whether an output of bytes is made of two bytes: of the middle type's and of the residual's."""
    return p.middle is not None and p.y.quantised and (p.residual_type or p.y).quantised and clips(p)


def count(p: Problem) -> int:
    """Entries of the array "numbers"."""
    return 6 if p.middle is None else 11


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
    x = types["x"]
    zero = (x.zero or 0) - (128 if signed else 0)
    total = w.astype(np.int64).reshape(len(w), -1).sum(axis=1)
    multiplier = np.float64(x.scale) * weight_scale.astype(np.float64)
    step, shift = 1.0, 0.0  # of what the multiplier and the bias give
    first = types.get("middle") or (types.get("y") if clips(p) else None)
    if first is not None and first.scale is not None:
        step, shift = first.scale, 0.0 if of_pairs(p) else float(first.zero or 0)
    return {
        "start": (-zero * total).astype(np.int32),
        "multiplier": (multiplier / step).astype(np.float32),
        "bias": (bias.astype(np.float64) / step + shift).astype(np.float32),
        "numbers": _of_sum(p, types) if p.middle is not None else _numbers(p, types, step, shift),
        "zero": np.array([x.zero or 0], np.uint8),
    }


def _numbers(p: Problem, types: Mapping[str, TensorType], step: float, shift: float) -> np.ndarray:
    """``step`` and ``shift``: of what the multiplier and the bias give."""
    y, numbers = types.get("y"), np.zeros(count(p), np.float32)
    if y is not None and y.scale is not None:
        low, high = INTEGERS[y.dtype]
        numbers[[LOW, HIGH, INVERSE, ZERO]] = low, high, 1 / y.scale, y.zero or 0
        if clips(p):
            bounds = [np.clip(bound / step + shift, low, high) for bound in _bounds(p)]
            numbers[[LOW, HIGH]] = np.rint(bounds)  # kernels cut them
    residual = types.get("residual_type", y) if p.residual and (p.residual_type or p.y).quantised else None
    if residual is not None and residual.scale is not None:
        numbers[RESIDUAL_SCALE] = residual.scale / step
        numbers[RESIDUAL_SHIFT] = -(residual.zero or 0) * residual.scale / step
    elif p.residual:
        numbers[RESIDUAL_SCALE] = 1 / step
    return numbers


def _of_sum(p: Problem, types: Mapping[str, TensorType]) -> np.ndarray:
    """With a middle type. 1 / scale of y is INVERSE + INVERSE_REST (kerf.kernels.pointwise.quotient). Zero points are
    taken from and added to numbers that the sum with ROUND has rounded: halves go to even as if there were none.
    """
    middle, y, numbers = types["middle"], types.get("y"), np.zeros(count(p), np.float32)
    numbers[[MIDDLE_LOW, MIDDLE_HIGH]] = INTEGERS[middle.dtype]
    numbers[[MIDDLE_SCALE, MIDDLE_ZERO]] = middle.scale, ROUND + (middle.zero or 0)
    if y is not None and y.scale is not None:
        low, high = INTEGERS[y.dtype]
        scale, zero = np.float32(y.scale), y.zero or 0
        bounds = _bounds(p) if clips(p) else CLIPS["none"]
        numbers[[LOW, HIGH]] = [np.clip(np.rint(np.float32(b) / scale) + zero, low, high) for b in bounds]
        numbers[[INVERSE, INVERSE_REST]] = reciprocal(y.scale)
        numbers[ZERO] = ROUND - zero
    residual = types.get("residual_type", y) if (p.residual_type or p.y).quantised else None
    if residual is not None and residual.scale is not None:
        numbers[[RESIDUAL_SCALE, RESIDUAL_SHIFT]] = residual.scale, -(residual.zero or 0)
    if of_pairs(p) and y is not None and residual is not None:
        found = products(middle, residual, y, p.epilogue)
        if found is None:
            raise ValueError(f"{middle} and {residual} to {y}: no two products are this sum, which no layer takes then")
        numbers[[MIDDLE_LOW, MIDDLE_HIGH]] -= middle.zero or 0
        numbers[[MIDDLE_SCALE, RESIDUAL_SCALE, RESIDUAL_SHIFT]] = found
    return numbers


def _bounds(p: Problem) -> tuple[float, float]:
    """Of an activation that is a clip."""
    return (p.alpha, p.beta) if p.activation == "clip" else CLIPS[p.activation]
