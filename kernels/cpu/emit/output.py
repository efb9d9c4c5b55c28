"""The output planes of a function, and the epilogue on the way into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.layout import LINE, out_planes
from kerf.kernels.epilogue import activate
from kerf.kernels.problem import Problem
from kerf.kernels.vector import run, splat


class Output:
    """The output planes of one function, and the epilogue on the way into them."""

    def __init__(self, p: Problem, y, residual=None):
        """``y`` and ``residual`` are flat."""
        self.p, self.pitch, self.y, self.residual = p, out_planes(p)[2], y, residual

    @classmethod
    def of(cls, p: Problem, y, residual) -> Output:
        """Of the function's parameters y and residual."""
        flat = [
            T.decl_buffer((math.prod(out_planes(p)),), b.dtype, data=b.data) for b in (y, residual) if b is not None
        ]
        return cls(p, *flat)

    def plane(self, image, channel):
        return (image * self.p.out_channels + channel) * self.pitch

    def turn_to(self, channel) -> None:
        """What is stored next is of this channel. Here nothing depends on it."""

    def store(self, value, at, lanes: int) -> None:
        """activation(value + residual)"""
        index = run(at, lanes)
        if self.residual is not None:
            value = value + self.residual[index]
        T.buffer_store(self.y, activate(self.p.epilogue, value, lanes), [index])

    def store_row(self, vectors: Sequence[Any], at, offsets: Sequence[int], lanes: int) -> None:
        """Vectors of one plane, each at its offset from ``at``."""
        for vector, offset in zip(vectors, offsets):
            self.store(vector, at + offset, lanes)

    def blank_lines(self, image, lanes: int) -> None:
        """Zeros into the last line of every plane, before pixels are stored that do not fill it."""
        with T.serial(0, self.p.out_channels) as channel:
            self.blank(self.plane(image, channel), self.pitch - LINE, lanes)

    def blank(self, plane, begin: int, lanes: int) -> None:
        """Zeros from number ``begin`` of a plane to its end."""
        while begin < self.pitch:
            lanes = min(lanes, 1 << ((self.pitch - begin).bit_length() - 1))
            T.buffer_store(self.y, splat(0, lanes, str(self.y.dtype)), [run(plane + begin, lanes)])
            begin += lanes
