"""What a function on images does to each pixel: a short program that is run on vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm.tirx.script.builder import ir as T

from kerf.kernels.epilogue import activate
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.quotient import reciprocal
from kerf.kernels.vector import cast, quotient, rounded_product, splat

FLOAT = "float32"
IMAGE, PLANE, CHANNEL = "image", "plane", "channel"  # what operands have a number for: pixel, plane, channel
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": T.max,
    "min": T.min,
    "scale": rounded_product,  # of what DequantizeLinear gives: sums of these are the same wherever they are computed
    "round": T.nearbyint,  # halves to even, as ONNX
}


STEPS = "steps"  # of a value, how many of a size, which is a float: a quotient of bytes, right as far as they reach
LARGEST_STEPS = 1024.0


class Step(NamedTuple):
    """One of OPERATORS of its values, STEPS, or an Activation of one. Integers number values, a float is one."""

    does: str | Activation
    values: tuple[int | float, ...]


@dataclass(frozen=True)
class Pointwise:
    """The operands, in order, are values 0, 1, ...; each step makes the next, the last is the result.

    ``parts``: channels of the images that operand 0 is the concatenation of; they are taken in its place.
    ``stored``: how operands lie in memory, numpy's names, float32 where it is empty; ``result``: how the result does.
    Steps are in float32; a whole number that is stored as an integer is saturated, NaN becomes the least.
    """

    operands: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    parts: tuple[int, ...] = ()
    stored: tuple[str, ...] = ()
    result: str = FLOAT

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of operands in memory."""
        return self.stored or (FLOAT,) * len(self.operands)

    @property
    def flat(self) -> bool:
        """Whether all operands are read as the result is written, so that planes are of no account."""
        return set(self.operands) == {IMAGE} and not self.parts

    @property
    def divides(self) -> bool:
        """By numbers that are no constants: those between planes may be 0."""
        return any(step.does == "div" and isinstance(step.values[1], int) for step in self.steps)

    def value(self, vectors: Sequence, lanes: int):
        """The result, as it is stored, of vectors of the operands, as they are."""
        if not self.steps and self.dtypes[0] == self.result:
            return vectors[0]
        values = [cast(v, FLOAT, lanes) if d != FLOAT else v for v, d in zip(vectors, self.dtypes)]
        for does, of in self.steps:
            given = [values[v] if isinstance(v, int) else splat(v, lanes) for v in of]
            if isinstance(does, Activation):
                y = activate(does, given[0], lanes)
            else:
                y = _steps(given[0], of[1], lanes) if does == STEPS else OPERATORS[does](*given)
            values.append(T.Bind(y))
        return values[-1] if self.result == FLOAT else _saturated(values[-1], self.result, lanes)


def _steps(vector, size: float, lanes: int):
    """Cut off where no quotient is infinite: bytes saturate long before."""
    most = LARGEST_STEPS * size
    v = T.Bind(T.min(T.max(vector, splat(-most, lanes)), splat(most, lanes)))
    return quotient(v, *(splat(float(part), lanes) for part in reciprocal(size)))


def _saturated(vector, dtype: str, lanes: int):
    """Whole numbers of float32 as integers: the bounds are second operands, which NaN leaves."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    bounded = T.min(T.max(vector, splat(low, lanes)), splat(high, lanes))
    return cast(cast(bounded, "int32", lanes), dtype, lanes)
