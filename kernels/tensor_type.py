"""TensorType: what the numbers of a tensor are. A property of every value: of an image, a weight, a residual."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kerf.errors import BadInput

# Name -> numpy's. tf32 lies in memory as float32; products with it have 10 bits of mantissa.
DTYPES = {"f32": "float32", "tf32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8"}
INTEGERS = {"u8": (0, 255), "i8": (-128, 127)}  # the least and the largest


@dataclass(frozen=True)
class TensorType:
    """Of floats nothing but ``dtype``. Integers q stand for scale * (q - zero), with zero = 0 where it is None.

    ``scale`` is one number for all of the tensor, or None where ``axis`` says that every index of that axis has one of
    its own: those are an array, which whoever holds the tensor keeps beside it.
    """

    dtype: str
    scale: float | None = None
    zero: int | None = None
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadInput(f"TensorType: dtype {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if not self.quantised:
            if (self.scale, self.zero, self.axis) != (None, None, None):
                raise BadInput(f"TensorType: {self} has a scale, zero point or axis; only integers do")
            return
        if (self.scale is None) == (self.axis is None):
            raise BadInput(f"TensorType: {self}; integers need a scale, or an axis whose indices have one each")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise BadInput(f"TensorType: scale {self.scale}; expected a positive number")
        low, high = INTEGERS[self.dtype]
        if self.zero is not None and not low <= self.zero <= high:
            raise BadInput(f"TensorType: zero point {self.zero}; {self.dtype} holds {low} to {high}")

    @property
    def quantised(self) -> bool:
        return self.dtype in INTEGERS

    @property
    def numpy(self) -> str:
        return DTYPES[self.dtype]

    @property
    def unit(self) -> TensorType:
        """What code depends on: the type without its numbers, as if a step were 1. Tensors that differ in their scales
        alone are computed by the same kernel, which is given the numbers with the weights.
        """
        return replace(self, scale=None if self.scale is None else 1.0, zero=None if self.zero is None else 0)

    def __str__(self) -> str:
        numbers = {"scale": self.scale, "zero": self.zero, "axis": self.axis}
        said = ", ".join(f"{name} {value}" for name, value in numbers.items() if value is not None)
        return f"{self.dtype} ({said})" if said else self.dtype


F32, TF32, F16 = TensorType("f32"), TensorType("tf32"), TensorType("f16")
