"""conv2d_nchw_bytes_direct: convolution of bytes, 1xN block-sparse or dense, whose products are of float32.

For layers that are faster in f32, on CPUs without a dot product of bytes: theirs is three instructions for four
products, and wants four channels of a block row side by side, which short lists and stems of three channels do not
repay. Here bytes become floats on their way into registers, or into the padded copy that kernels of more than one tap
read anyway; the loop is the f32 kernels', weights are float32, and images stay bytes between layers, so that no other
layer need follow. Sums below 2^24 are exact, larger ones rounded as those of floats between Q/DQ nodes are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_bsr_direct, conv2d_nchw_dense_direct
from kerf.kernels.cpu.emit import direct
from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.int8 import estimate
from kerf.kernels.cpu.int8.dot import DOTS, Dot, dots
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.layout import in_planes
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.problem import Problem, sparse
from kerf.kernels.vector import cast

name = "conv2d_nchw_bytes_direct"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses_convolution(p) or (sparse(p) if p.n else None):
        return reason
    if p.depthwise:
        return "depthwise"
    dot = DOTS[dots(machine_of(target))[0]]
    return None if dot.paired else f"products of bytes by {dot.name}; this takes the place of those of pairs alone"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    """Those that sweep all input channels at once: sums of some have no place in an output of bytes."""
    return [c for c in _floats(p).configs(p, target) if c["panel"] == p.in_channels // p.groups]


def cycles(p: Problem, target: Target) -> float:
    inputs = p.nnzb * p.n / p.out_channels if p.n else p.in_channels // p.groups
    return estimate.cycles(p, estimate.FLOATS, inputs, p.out_height * p.out_width)


def _floats(p: Problem) -> Any:
    """The f32 kernel of the weights' format."""
    return conv2d_nchw_bsr_direct if p.n else conv2d_nchw_dense_direct


def pack(p: Problem, w: Any, c: Config) -> dict[str, np.ndarray]:
    packed = _floats(p).pack(p, w, c)
    return packed | {"data": packed["data"].astype(np.float32)}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    machine = machine_of(target)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        weights = _floats(p).weights(p, c, target)
        weights.declare()
        epilogue = Epilogue(p)
        epilogue.declare_images()
        out = Bytes(p, epilogue, DOTS[dots(machine)[0]])
        emit = direct.Emit(p, c, machine, weights, Floats(epilogue.start), out)
        emit.far_input = False  # bytes are a quarter of what the prefetches were made for
        flat = T.decl_buffer((math.prod(in_planes(p)),), "uint8", data=x.data)
        emit.images(flat, Floats(flat), target, fill=T.Bind(T.cast(epilogue.zero[0], "float32")), read=as_floats)
    return builder.get()


def as_floats(numbers):
    """Of integers, one or a vector of them."""
    return cast(numbers, "float32", numbers.ty.dtype.lanes)


@dataclass(frozen=True)
class Floats:
    """A buffer of integers, read as floats."""

    buffer: Any

    def __getitem__(self, index):
        return as_floats(self.buffer[index])


class Bytes(Output):
    """Planes of a layer's output, one channel after the other, with the epilogue of integers on the way into them."""

    def __init__(self, p: Problem, epilogue: Epilogue, dot: Dot):
        super().__init__(p, epilogue.y)
        self.epilogue, self.dot = epilogue, dot

    def plane(self, image, channel):
        return self.epilogue.plane(image, channel)

    def turn_to(self, channel) -> None:
        self.steps = self.epilogue.steps(channel)

    def store(self, value, at, lanes: int) -> None:
        self.epilogue.store(value, self.steps, at, lanes)

    def store_row(self, vectors: Sequence[Any], at, offsets: Sequence[int], lanes: int) -> None:
        self.epilogue.store_row(vectors, self.steps, at, offsets, lanes, self.dot)

    def blank_lines(self, image, lanes: int) -> None:
        """What lies behind the pixels is never read for one, and every byte is finite."""
        if not self.p.y.quantised:
            super().blank_lines(image, lanes)

    def blank(self, plane, begin: int, lanes: int) -> None:
        if not self.p.y.quantised:
            super().blank(plane, begin, lanes)
