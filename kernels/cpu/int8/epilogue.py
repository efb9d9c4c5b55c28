"""From integer sums to the output: bias, residual, activation, rounding, in one pass over vectors in registers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.int8 import numbers
from kerf.kernels.cpu.int8.dot import PACKED, PART, QUAD, Dot, packed, side_by_side, widened
from kerf.kernels.cpu.layout import out_planes
from kerf.kernels.epilogue import activate
from kerf.kernels.pointwise.exponential import ROUND
from kerf.kernels.problem import Problem
from kerf.kernels.vector import cast, fma, quotient, rounded_product, run, splat

MAGIC = float(1 << 23)  # added to 0 .. 2^23 it rounds, half to even, and the integer is in the lowest bits


class Epilogue:
    """The arrays of kerf.kernels.cpu.int8.numbers, the residual and the output of the function being built."""

    def __init__(self, p: Problem):
        """Declares them, but for the residual and the output."""
        self.p = p
        channels = (p.out_channels,)
        self.start = T.arg("start", T.buffer(channels, "int32"))
        self.multiplier = T.arg("multiplier", T.buffer(channels, "float32"))
        self.bias = T.arg("bias", T.buffer(channels, "float32"))
        self.numbers = T.arg("numbers", T.buffer((numbers.count(p),), "float32"))
        self.zero = T.arg("zero", T.buffer((1,), "uint8"))

    def declare_images(self) -> None:
        p, kind = self.p, (self.p.residual_type or self.p.y).numpy
        residual = T.arg("residual", T.buffer(out_planes(p), kind)) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), p.y.numpy))
        size = (math.prod(out_planes(p)),)
        self.residual_type = p.residual_type or p.y
        self.residual: Any = None
        if residual is not None:
            self.residual = T.decl_buffer(size, kind, data=residual.data)
        self.y = T.decl_buffer(size, p.y.numpy, data=y.data)
        # read once: for all that the compiler knows, a store of bytes may change them
        self._bound = [T.Bind(self.numbers[i]) for i in range(numbers.count(p))]

    def plane(self, image, channel):
        return (image * self.p.out_channels + channel) * out_planes(self.p)[2]

    def _number(self, place: int, lanes: int):
        return splat(self._bound[place], lanes)

    def steps(self, channel) -> tuple[Any, Any]:
        """(multiplier, bias) of a channel, or of a ramp of them, read once."""
        return T.Bind(self.multiplier[channel]), T.Bind(self.bias[channel])

    def store(self, sums, steps: tuple[Any, Any], at, lanes: int, to: Any = None) -> None:
        """``lanes`` sums, integers of any type, of the channel or channels of ``steps``, to place ``at`` of ``to``, or
        of y, whose residual is added.
        """
        residual = self.residual[run(at, lanes)] if self.residual is not None else None
        value = self._value(sums, steps, residual, lanes)
        if not self.p.y.quantised:
            T.buffer_store(self.y if to is None else to, value, [run(at, lanes)])
            return
        value = T.min(T.max(value, self._number(numbers.LOW, lanes)), self._number(numbers.HIGH, lanes))
        bits = T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", value + splat(MAGIC, lanes))
        T.buffer_store(self.y if to is None else to, cast(bits, "uint8", lanes), [run(at, lanes)])

    def store_row(
        self, vectors: Sequence[Any], steps: tuple[Any, Any], at, offsets: Sequence[int], lanes: int, dot: Dot
    ) -> None:
        """Vectors of ``lanes`` sums of one channel, each at its offset from ``at``. Up to four that lie side by side
        become one of bytes together, by the CPU's own instructions where it has them.
        """
        i, packs = 0, dot.narrow and self.p.y.quantised and lanes in PACKED
        while i < len(vectors):
            sides = (4, 3, 2, 1) if packs else (4, 2, 1)
            side = next(n for n in sides if list(offsets[i : i + n]) == [offsets[i] + k * lanes for k in range(n)])
            to, some = at + offsets[i], vectors[i : i + side]
            if packs:
                residuals: list[Any] = [None] * side
                if self.residual is not None:
                    residuals = [self.residual[run(to + k * lanes, lanes)] for k in range(side)]
                pairs = zip(some, residuals)
                values = [
                    T.Bind(self._below(self._value(sums, steps, residual, lanes), lanes)) for sums, residual in pairs
                ]
                for place, part in packed(dot, values, lanes, self._bound[numbers.LOW], self._bound[numbers.HIGH]):
                    T.buffer_store(self.y, part, [run(to + place, part.ty.dtype.lanes)])
            else:
                self.store(side_by_side(some, lanes) if side > 1 else some[0], steps, to, lanes * side)
            i += side

    def store_narrowed(self, vectors: list, steps: tuple[Any, Any], at, width: int, dot: Dot, to: Any = None) -> None:
        """Sums of ``width`` pixels of one channel, as quads_of leaves them, to bytes of ``to``, or of y."""
        residuals: list[Any] = [None] * len(vectors)
        if self.residual is not None and self.residual_type.quantised:
            residuals = widened(T.Bind(self.residual[run(at, width)]), width)
        elif self.residual is not None:
            residuals = [self._part(at, v, width) for v in range(len(vectors))]
        y = self.narrowed(vectors, steps, width, dot, residuals)
        T.buffer_store(self.y if to is None else to, y, [run(at, width)])

    def narrowed(
        self, vectors: list, steps: tuple[Any, Any], width: int, dot: Dot, residuals: Sequence[Any] = (None,) * QUAD
    ):
        """The bytes themselves, of four vectors of sums."""
        assert dot.narrow
        lanes = width // len(vectors)
        values = [self._below(self._value(sums, steps, r, lanes), lanes) for sums, r in zip(vectors, residuals)]
        return dot.narrow(values, width, self._bound[numbers.LOW], self._bound[numbers.HIGH])

    def _part(self, at, v: int, width: int):
        """Residual floats of vector ``v`` in the order of quads_of."""
        whole = self.residual[run(at, width)]
        places = [PART * part + QUAD * v + i for part in range(width // PART) for i in range(QUAD)]
        return tirx.Shuffle([whole], [T.int32(i) for i in places])

    def _below(self, value, lanes: int):
        """``value``, cut where it may not fit an int32, which makes the least of them of it: sums themselves do, since
        layers take no output of whose steps they may have 2^31 (deploy/frontend/passes/integer_layers.py).
        """
        p = self.p
        if numbers.clips(p) and not (p.residual and not self.residual_type.quantised):
            return value
        return T.min(value, self._number(numbers.HIGH, lanes))

    def _value(self, sums, steps: tuple[Any, Any], residual, lanes: int):
        """Real, or in steps of y."""
        p = self.p
        multiplier, bias = (_all(number, lanes) for number in steps)
        value = cast(sums, "float32", lanes) * multiplier + bias
        if p.middle is not None:
            return self._pair(value, residual, lanes) if numbers.of_pairs(p) else self._sum(value, residual, lanes)
        if residual is not None:
            other = cast(residual, "float32", lanes) * self._number(numbers.RESIDUAL_SCALE, lanes)
            value = value + (other + self._number(numbers.RESIDUAL_SHIFT, lanes))
        if p.y.quantised and numbers.clips(p):
            return value
        value = activate(p.epilogue, value, lanes)
        if p.y.quantised:
            value = value * self._number(numbers.INVERSE, lanes) + self._number(numbers.ZERO, lanes)
        return value

    def _pair(self, value, residual, lanes: int):
        """As _value, of two bytes (kerf.kernels.pointwise.pair)."""
        number = partial(self._number, lanes=lanes)
        value = T.min(T.max(value, number(numbers.MIDDLE_LOW)), number(numbers.MIDDLE_HIGH))
        shifted = fma(cast(residual, "float32", lanes), number(numbers.RESIDUAL_SCALE), number(numbers.RESIDUAL_SHIFT))
        return fma(T.nearbyint(value), number(numbers.MIDDLE_SCALE), shifted)

    def _sum(self, value, residual, lanes: int):
        """As _value, of the convolution in steps of the middle type: what ONNX's nodes give, to the last bit."""
        p, number = self.p, partial(self._number, lanes=lanes)
        value = T.min(T.max(value, number(numbers.MIDDLE_LOW)), number(numbers.MIDDLE_HIGH))
        value = value + splat(ROUND, lanes) - number(numbers.MIDDLE_ZERO)
        value = rounded_product(value, number(numbers.MIDDLE_SCALE))
        if self.residual_type.quantised:
            residual = cast(residual, "float32", lanes) + number(numbers.RESIDUAL_SHIFT)
            residual = rounded_product(residual, number(numbers.RESIDUAL_SCALE))
        value = value + residual
        if not (p.y.quantised and numbers.clips(p)):
            value = activate(p.epilogue, value, lanes)
        if not p.y.quantised:
            return value
        value = T.Bind(value)
        steps = quotient(value, number(numbers.INVERSE), number(numbers.INVERSE_REST))
        return steps + splat(ROUND, lanes) - number(numbers.ZERO)


def _all(value, lanes: int):
    """A number in every lane; a vector as it is."""
    return splat(value, lanes) if value.ty.dtype.lanes == 1 else value
