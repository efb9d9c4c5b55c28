"""From integer sums to the output: bias, residual, activation, rounding, in one pass over vectors in registers."""

from __future__ import annotations

import math

from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.int8 import numbers
from kerf.kernels.cpu.layout import out_planes
from kerf.kernels.epilogue import activate
from kerf.kernels.problem import Problem
from kerf.kernels.vector import run

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
        self.numbers = T.arg("numbers", T.buffer((6,), "float32"))
        self.zero = T.arg("zero", T.buffer((1,), "uint8"))

    def declare_images(self) -> None:
        p, kind = self.p, (self.p.residual_type or self.p.y).numpy
        residual = T.arg("residual", T.buffer(out_planes(p), kind)) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), p.y.numpy))
        size = (math.prod(out_planes(p)),)
        self.residual = T.decl_buffer(size, kind, data=residual.data) if p.residual else None
        self.y = T.decl_buffer(size, p.y.numpy, data=y.data)

    def plane(self, image, channel):
        return (image * self.p.out_channels + channel) * out_planes(self.p)[2]

    def _number(self, place: int, lanes: int):
        number = self.numbers[place]
        return T.broadcast(number, lanes) if lanes > 1 else number

    def store(self, sums, channel, at, lanes: int) -> None:
        """``lanes`` sums, integers of any type, of one channel, or of a ramp of them, to place ``at`` of y."""
        p, floats = self.p, f"float32x{lanes}" if lanes > 1 else "float32"

        def all_of(value):
            return T.broadcast(value, lanes) if lanes > 1 and value.ty.dtype.lanes == 1 else value

        value = T.cast(sums, floats) * all_of(self.multiplier[channel]) + all_of(self.bias[channel])
        if self.residual is not None:
            other = T.cast(self.residual[run(at, lanes)], floats) * self._number(numbers.RESIDUAL_SCALE, lanes)
            value = value + (other + self._number(numbers.RESIDUAL_SHIFT, lanes))
        if not p.y.quantised:
            T.buffer_store(self.y, activate(p.epilogue, value, lanes), [run(at, lanes)])
            return
        if not numbers.clips(p):
            value = activate(p.epilogue, value, lanes) * self._number(numbers.INVERSE, lanes)
            value = value + self._number(numbers.ZERO, lanes)
        value = T.min(T.max(value, self._number(numbers.LOW, lanes)), self._number(numbers.HIGH, lanes))
        bits = T.reinterpret(f"int32x{lanes}" if lanes > 1 else "int32", value + all_of(T.float32(MAGIC)))
        T.buffer_store(self.y, T.cast(bits, f"uint8x{lanes}" if lanes > 1 else "uint8"), [run(at, lanes)])
