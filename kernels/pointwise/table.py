"""What functions of one byte give for each of its 256 values, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerf.kernels import reference
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.program import FLOAT, STEPS, Pointwise

SIZE = 256
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.fmax,  # as kernels take them: of NaN and a number the number
    "min": np.fmin,
    "scale": np.multiply,
    "round": np.rint,
    STEPS: np.divide,
}


def every(dtype: str) -> np.ndarray:
    """All bytes (256,) of numpy's ``dtype``, int8 or uint8, in the order of their bits as a number from 0 on."""
    return np.arange(SIZE, dtype=np.uint8).view(dtype)


def evaluate(f: Pointwise, operands: Sequence[np.ndarray]) -> np.ndarray:
    """The result, as it is stored, of operands of one shape: every step rounded to float32, as ONNX's nodes do it."""
    if not f.steps:
        return operands[0]
    values = [np.asarray(operand).astype(FLOAT) for operand in operands]
    with np.errstate(all="ignore"):
        for does, of in f.steps:
            given = [values[v] if isinstance(v, int) else np.full_like(values[0], v) for v in of]
            y = reference.activate(does, given[0]) if isinstance(does, Activation) else OPERATORS[does](*given)
            values.append(np.asarray(y).astype(FLOAT))
    if f.result == FLOAT:
        return values[-1]
    bounds = np.iinfo(f.result)
    return np.fmin(np.fmax(values[-1], bounds.min), bounds.max).astype(f.result)
