"""conv2d_nchw_depthwise_bytes: one filter per channel on planes of bytes.

A channel's copy, which is padded anyway, is made of float32: differences from the zero point, and sums of their
products with integer weights, are integers below 2^24, so the arithmetic is exact and the f32 kernel's. What is saved
is memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_depthwise as floats
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.int8 import estimate
from kerf.kernels.cpu.int8.conv2d_nchw_bytes_direct import Bytes
from kerf.kernels.cpu.int8.dot import DOTS, dots
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.layout import in_planes
from kerf.kernels.cpu.machine import machine_of, parallel_loop
from kerf.kernels.problem import Problem
from kerf.kernels.vector import cast, splat

name = "conv2d_nchw_depthwise_bytes"
EXACT = 1 << 24  # integers that float32 holds


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses(p):
        return reason
    if p.n or not p.depthwise:
        return "not depthwise"
    return f"{p.taps} taps, whose sums float32 does not hold" if p.taps * 255 * 128 > EXACT else None


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return floats.configs(p, target)


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (C, 1, kh, kw) int8 -> data (C, taps) int8."""
    return {"data": np.ascontiguousarray(w.reshape(p.out_channels, p.taps).astype(np.int8))}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    chunk = -(-p.in_channels // floats.CHUNKS)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        data = T.arg("data", T.buffer((p.out_channels, p.taps), "int8"))
        epilogue = Epilogue(p)
        epilogue.declare_images()
        flat = T.decl_buffer((math.prod(in_planes(p)),), "uint8", data=x.data)
        emit = _Channels(p, c, target, data, epilogue)
        with T.serial(0, p.batch) as image, parallel_loop(target)(0, floats.CHUNKS) as k:
            first = T.Bind(k * chunk)
            origin = (image * p.in_channels + first) * in_planes(p)[2]
            emit.channels(flat, origin, image, first, T.max(T.min(chunk, p.in_channels - first), 0))
    return builder.get()


class _Channels(floats.Channels):
    def __init__(self, p: Problem, c: Config, target: Target, data, epilogue: Epilogue):
        machine = machine_of(target)
        self.output = Bytes(p, epilogue, DOTS[dots(machine)[0]])
        super().__init__(p, c, machine, data, None, self.output)
        planes = self.planes
        if not planes.copied:
            self.planes = Planes(p, True, planes.pitch, planes.plane, planes.channel)

    def channels(self, src, origin, image, first, count) -> None:
        """``count`` channels from ``first``, whose planes start at byte ``origin`` of ``src``, a few at a time."""
        planes, step = self.planes, in_planes(self.p)[2]
        few = max(1, self.machine.l1_floats // 8 // planes.channel)
        scratch = T.alloc_buffer((planes.scratch(few),), "float32")
        zero = T.Bind(T.cast(self.output.epilogue.zero[0], "float32"))

        def read(pixels):
            lanes = pixels.ty.dtype.lanes
            return cast(pixels, "float32", lanes) - splat(zero, lanes)

        with T.serial(0, (count + few - 1) // few) as k:
            done = T.Bind(k * few)
            some = T.Bind(T.min(few, count - done)) if few > 1 else 1
            copy = Padding(planes, src, scratch, self.c["lanes"], read=read).copy
            copy(origin + done * step, some, T.serial)
            with T.serial(0, some) as i:
                self._channel(scratch, i * planes.channel, image, T.Bind(first + done + i))

    def _weights(self, channel) -> list:
        self.output.turn_to(channel)
        return [T.Bind(T.cast(self.data[channel, tap], "float32")) for tap in range(self.p.taps)]

    def _start(self, channel):
        return T.float32(0)
