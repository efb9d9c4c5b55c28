"""conv2d_nchw_bsr_bytes: 1xN block-sparse convolution of bytes whose products are of float32.

For CPUs without a dot product of bytes: theirs cost three instructions for four products, and wants four channels of a
block row side by side, which short lists do not repay. Here bytes become floats on their way into registers, or into
the padded copy that kernels of more than one tap read anyway, and the loop is the f32 kernel's. Sums of fewer than 2^24
are exact; larger ones are rounded as those of floats between Q/DQ nodes are.
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

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_bsr_direct as floats
from kerf.kernels.cpu.emit import direct
from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.emit.register_tile import Source
from kerf.kernels.cpu.int8 import estimate
from kerf.kernels.cpu.int8.dot import DOTS, dots
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.layout import in_planes, out_planes
from kerf.kernels.cpu.machine import machine_of, parallel_loop
from kerf.kernels.problem import Problem
from kerf.kernels.vector import cast

name = "conv2d_nchw_bsr_bytes"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses_convolution(p):
        return reason
    if not p.n:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; 1xN blocks are defined on ungrouped convolutions"
    dot = DOTS[dots(machine_of(target))[0]]
    return None if dot.paired else "this CPU has a product of bytes, which no product of floats comes near"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return [c for _, c in floats.tilings(p, target) if c["panel"] == p.in_channels]


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    packed = floats.pack(p, w, c)
    return packed | {"data": packed["data"].astype(np.float32)}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    planes, machine = Planes.of(p), machine_of(target)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        weights = floats.Blocks(p, c, planes.channel)
        weights.declare()
        epilogue = Epilogue(p)
        epilogue.declare_images()
        emit = direct.Emit(p, c, machine, weights, Floats(epilogue.start), Bytes(p, epilogue))
        emit.far_input = False  # bytes are a quarter of what the prefetches were made for
        flat = T.decl_buffer((math.prod(in_planes(p)),), "uint8", data=x.data)
        padded = T.alloc_buffer((planes.scratch(p.in_channels),), "float32") if planes.copied else None
        with T.serial(0, p.batch) as image:
            origin = image * math.prod(in_planes(p)[1:])
            if padded is None:
                emit.image(Source(Floats(flat), origin, image))
            else:
                fill = T.Bind(T.cast(epilogue.zero[0], "float32"))
                copies = Padding(planes, flat, padded, c["lanes"], fill=fill, read=as_floats)
                copies.copy(origin, p.in_channels, parallel_loop(target))
                emit.image(Source(padded, 0, image))
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
    """Planes of the layer's output, with the epilogue of integers on the way into them."""

    def __init__(self, p: Problem, epilogue: Epilogue):
        super().__init__(p, epilogue.y)
        self.epilogue = epilogue

    def plane(self, image, channel):
        return self.epilogue.plane(image, channel)

    def turn_to(self, channel) -> None:
        self.steps = self.epilogue.steps(channel)

    def store(self, value, at, lanes: int) -> None:
        self.epilogue.store(value, self.steps, at, lanes)

    def blank_lines(self, image, lanes: int) -> None:
        """What lies behind the pixels is never read for one, and every byte is finite."""
        if not self.p.y.quantised:
            super().blank_lines(image, lanes)

    def blank(self, plane, begin: int, lanes: int) -> None:
        if not self.p.y.quantised:
            super().blank(plane, begin, lanes)
