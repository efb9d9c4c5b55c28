"""Problem: what one layer computes, without its numbers. Hashable, so equal layers are tuned once."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from kerf.errors import BadInput
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.precision import PRECISIONS, TYPES, types_of
from kerf.kernels.tensor_type import F32, TensorType


@dataclass(frozen=True)
class Problem:
    """A 2-D convolution: y = activation(middle(conv(x, w) + bias) [+ residual]).

    A fully connected layer is a 1x1 convolution of a 1x1 image. Sizes in elements; ``padding`` is (top, left, bottom,
    right). ``alpha`` and ``beta`` are numbers of the activation (kerf.kernels.pointwise.activation).
    ``n`` is N of the 1xN blocks, 0 for dense weights; ``nnzb`` counts the stored blocks. ``x``, ``w`` and ``y``
    are types without numbers (TensorType.unit), so that layers that differ in scales alone are equal problems;
    ``residual_type`` is None where the residual's is that of y. ``middle``: the integers that the convolution is
    rounded to, and saturated, before the residual is added; None where it is not.
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    residual: bool = False
    n: int = 0
    nnzb: int = 0
    x: TensorType = F32
    w: TensorType = F32
    y: TensorType = F32
    residual_type: TensorType | None = None
    middle: TensorType | None = None
    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in self.types.items():
            if kind != kind.unit:
                raise BadInput(f"Problem: {name} is {kind}; scales and zero points belong to a layer, give {kind.unit}")
            if kind.axis is not None and (name, kind.axis) != ("w", 0):
                raise BadInput(f"Problem: {name} is {kind}; only weights have scales of an axis, that of outputs, 0")
        if self.x.quantised != self.w.quantised:
            raise BadInput(f"Problem: x is {self.x} and w is {self.w}; products are of integers or of floats")
        if self.residual_type is not None and not self.residual:
            raise BadInput(f"Problem: a residual of {self.residual_type}, but no residual; set residual=True")
        if self.middle is not None and not (self.residual and self.x.quantised and self.middle.scale):
            raise BadInput(f"Problem: {self.middle} before a residual; only integer layers that have one round there")
        try:
            self.epilogue.check()
        except BadInput as error:
            raise BadInput(f"Problem: {error}") from error
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise BadInput(f"Problem: {self.groups} groups divide neither {self.in_channels} nor {self.out_channels}")
        if min(self.out_shape) < 1:
            raise BadInput(f"Problem: output {self.out_shape} of {self.describe()} is empty")

    @property
    def epilogue(self) -> Activation:
        """The activation with its numbers."""
        return Activation(self.activation, self.alpha, self.beta)

    @property
    def types(self) -> dict[str, TensorType]:
        """By field, of those that are given."""
        return {name: kind for name in TYPES if (kind := getattr(self, name)) is not None}

    @property
    def precision(self) -> str | None:
        """The word for these types; None where there is none, for integers or a mixture."""
        return next((name for name in PRECISIONS if types_of(name) == self.types), None)

    @property
    def numbers(self) -> str:
        """What it is computed with, in one word for tables: "int8", or the floats of ``precision``."""
        return "int8" if self.x.quantised else self.precision or self.x.dtype

    @property
    def dtype(self) -> str:
        """numpy's, of images."""
        return self.x.numpy

    @property
    def out_height(self) -> int:
        top, _, bottom, _ = self.padding
        return (self.height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        _, left, _, right = self.padding
        return (self.width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels, self.out_height, self.out_width)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    def holds_blocks(self, n: int) -> bool:
        """Whether 1xn blocks are defined on the weights."""
        return holds_blocks(*self.weight_shape[:2], self.groups, n)

    @property
    def macs(self) -> int:
        """Multiply-accumulates on stored weights (padding counted as work, as everywhere in the field)."""
        per_pixel = (
            self.nnzb * self.n * self.taps
            if self.n
            else self.out_channels * self.in_channels // self.groups * self.taps
        )
        return self.batch * self.out_height * self.out_width * per_pixel

    def describe(self) -> str:
        """One short line for tables: 64x56x56 -> 128, 3x3/2."""
        kh, kw = self.kernel
        text = f"{self.in_channels}x{self.height}x{self.width}->{self.out_channels} {kh}x{kw}"
        text += f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        text += f" g{self.groups}" if self.groups > 1 else ""
        return text if self.batch == 1 else f"{self.batch}x {text}"

    def to_json(self) -> str:
        """Canonical text: the key of records and of the custom ONNX operator."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in TYPES}
        for name in ("alpha", "beta"):  # without them in keys of records made before there were any
            if not values[name]:
                del values[name]
        values["block"] = values.pop("n")  # what the key called it from the first
        if self.precision is None:
            values["types"] = {
                name: {k: v for k, v in vars(kind).items() if v is not None} for name, kind in self.types.items()
            }
        elif self.precision != "f32":  # without it in keys of records made before there was another
            values["precision"] = self.precision
        return json.dumps(values, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Problem:
        """Raises BadInput for what ``to_json`` does not write."""
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
            values["n"] = values.pop("block", 0)
            types = {name: TensorType(**kind) for name, kind in values.pop("types", {}).items()}
            given: dict[str, Any] = types_of(values.pop("precision", "f32")) | types
            _refuse_other_types(values)
            return cls(**values, **given)
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError, ZeroDivisionError) as error:
            raise error if isinstance(error, BadInput) else BadInput(f"{text:.80}: no problem ({error})") from error


def _refuse_other_types(values: dict[str, Any]) -> None:
    """Raises TypeError for JSON of another kind than a problem's fields."""
    kinds: dict[str, Any] = {"activation": str, "residual": bool, "alpha": float, "beta": float}
    lengths = {"kernel": 2, "stride": 2, "dilation": 2, "padding": 4}
    for name, value in values.items():
        parts = value if name in lengths and isinstance(value, tuple) else (value,)
        kind = kinds.get(name, int)
        if len(parts) != lengths.get(name, 1) or any(
            not isinstance(part, kind if kind is not float else int | float) or isinstance(part, bool) != (kind is bool)
            for part in parts
        ):
            raise TypeError(f"{name} is {value!r}")
        least = {"padding": -(2**31), "n": 0, "nnzb": 0}.get(name, 1)
        if kind is int and not all(least <= part < 2**40 for part in parts):
            raise TypeError(f"{name} is {value!r}")


def holds_blocks(outputs: int, inputs: int, groups: int, n: int) -> bool:
    """Whether 1xn blocks are defined on a weight (outputs, inputs, *kernel) of so many groups: an output reads several
    channels, and no block straddles two groups.
    """
    return groups == 1 or (inputs > 1 and outputs // groups % n == 0)


def sparse(p: Problem) -> str | None:
    """Why a kernel for 1xN blocks cannot take ``p``; None if it can."""
    if not p.n:
        return "weights are dense"
    if not p.holds_blocks(p.n):
        return f"{p.groups} groups of {p.out_channels // p.groups} filters: depthwise, or straddled by blocks of {p.n}"
    return None


def computes(p: Problem, *precisions: str) -> str | None:
    """Why a kernel for ``precisions`` cannot take the types of ``p``; None if it can."""
    if p.precision in precisions:
        return None
    said = p.precision or ", ".join(f"{name} {kind}" for name, kind in p.types.items())
    return f"types {said}; computes {' or '.join(precisions)}"
