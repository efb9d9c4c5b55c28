"""conv2d_nchw_depthwise_quads: one filter per channel on planes of bytes, four taps of a row an instruction.

    for channel:
        padded = its plane, rows side by side, split by the parity that the vertical stride reads     # bytes
        for tile of ``bytes`` flat output pixels, over all rows:
            acc[4 vectors] = start                                                                    # registers
            for row of the kernel, for quad of its taps:
                acc[v] += windows(padded + row + place of v) * the quad's four weights                # dot.py
            rows[tile] = epilogue(acc)
        y = the pixels of rows

A window is a pixel and the three right of it. A vector has four of them for every 16 bytes that are loaded, so that
no byte moves further than within its 16, and the sums are narrowed to bytes by the shortest way there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_depthwise as floats
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.int8 import estimate
from kerf.kernels.cpu.int8.dot import DOTS, PART, QUAD, dots, turned
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.layout import LINE, in_planes
from kerf.kernels.cpu.machine import machine_of, parallel_loop
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import groups, overrun, run

name = "conv2d_nchw_depthwise_quads"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses(p):
        return reason
    if p.n or not p.depthwise:
        return "not depthwise"
    dot = DOTS[dots(machine_of(target))[0]]
    if dot.paired or not dot.narrow:
        return "this CPU has no product of bytes that does not saturate"
    if p.residual or not p.y.quantised:
        return "a residual" if p.residual else f"y {p.y}; gives u8"
    stride, step = p.stride[1], p.dilation[1]
    if stride > 2 or (QUAD - 1) * (stride + step) >= PART:
        return f"stride {stride}, dilation {step}: four windows are wider than {PART} bytes"
    return None


def configs(p: Problem, target: Target) -> Sequence[Config]:
    dot, widths = dots(machine_of(target))
    used = _planes(p).pitch // p.stride[1] * p.out_height
    found = [(-(-used // width), width) for width in widths]
    return [{"dot": dot, "bytes": width} for _, width in sorted(found, key=lambda f: (f[0], -f[1]))]


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (C, 1, kh, kw) int8 -> data (C, kh * quads of a row) int32, four weights each."""
    rows = w.reshape(p.out_channels, *p.kernel)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -p.kernel[1] % QUAD)))
    return {"data": np.ascontiguousarray(rows.astype(np.int8)).reshape(p.out_channels, -1).view(np.int32)}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    chunk = -(-p.in_channels // floats.CHUNKS)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        data = T.arg("data", T.buffer((p.out_channels, p.kernel[0] * -(-p.kernel[1] // QUAD)), "int32"))
        epilogue = Epilogue(p)
        epilogue.declare_images()
        flat = T.decl_buffer((math.prod(in_planes(p)),), "uint8", data=x.data)
        with T.serial(0, p.batch) as image, parallel_loop(target)(0, floats.CHUNKS) as k:
            first = T.Bind(k * chunk)
            count = T.max(T.min(chunk, p.in_channels - first), 0)
            _Channels(p, c, data, epilogue, machine_of(target).l1).emit(flat, image, first, count)
    return builder.get()


def _planes(p: Problem) -> Planes:
    """Of the copies: columns as they lie, rows of an even length where the stride skips every other one."""
    found = Planes.of(replace(p, stride=(p.stride[0], 1)))
    pitch = -(-found.pitch // p.stride[1]) * p.stride[1]
    plane = found.plane // found.pitch * pitch
    return Planes(found.p, True, pitch, plane, -(-plane * found.phases[0] // LINE) * LINE)


class _Channels:
    """The code for some channels."""

    def __init__(self, p: Problem, c: Config, data, epilogue: Epilogue, l1: int):
        self.p, self.width, self.dot = p, c["bytes"], DOTS[c["dot"]]
        self.lanes = self.width // QUAD
        self.planes, self.data, self.epilogue = _planes(p), data, epilogue
        self.pitch = self.planes.pitch // p.stride[1]  # of output rows, as they are computed
        self.tiles = -(-((p.out_height - 1) * self.pitch + p.out_width) // self.width)
        self.few = max(1, l1 // 4 // self.planes.channel)
        step, reach = p.dilation[1], p.stride[1]
        self.windows = [
            PART * i + reach * j + step * k
            for i, j, k in product(range(self.width // PART), range(PART // QUAD), range(QUAD))
        ]

    def emit(self, src, image, first, count) -> None:
        """``count`` channels from ``first``, a few at a time."""
        p, planes = self.p, self.planes
        behind = self.tiles * self.width * p.stride[1] + 2 * self.width  # what tiles read of no pixel
        scratch = T.alloc_buffer((planes.scratch(self.few) + behind,), "uint8")
        rows = T.alloc_buffer((self.tiles * self.width + self.width,), "uint8")
        zero, read = self.epilogue.zero[0], Padding.read
        if self.dot.signed:  # pixels are turned as they are copied
            zero, read = turned(zero), turned
        copy = Padding(planes, src, scratch, self.width, fill=zero, read=read).copy
        with T.serial(0, (count + self.few - 1) // self.few) as k:
            done = T.Bind(first + k * self.few)
            some = T.Bind(T.min(self.few, first + count - done)) if self.few > 1 else 1
            copy((image * p.in_channels + done) * in_planes(p)[2], some, T.serial)
            with T.serial(0, some) as i:
                self._channel(scratch, T.Bind(i * planes.channel), rows, T.Bind(done + i))
                self._pixels(rows, self.epilogue.plane(image, done + i))

    def _channel(self, scratch, origin, rows, channel) -> None:
        quads = range(-(-self.p.kernel[1] // QUAD))
        words = [(row, quad) for row in range(self.p.kernel[0]) for quad in quads]
        weights = [self._weights(channel, i) for i in range(len(words))]
        start = T.Bind(T.broadcast(self.epilogue.start[channel], self.lanes))
        steps = self.epilogue.steps(channel)
        with T.serial(0, self.tiles) as tile:
            at = T.Bind(origin + tile * self.width * self.p.stride[1])
            acc = T.alloc_buffer((self.width,), "int32", scope="local", annotations=REGISTERS)
            places = [run(v * self.lanes, self.lanes) for v in range(QUAD)]
            for place in places:
                T.buffer_store(acc, start, [place])
            for (row, quad), weight in zip(words, weights):
                phase, offset = self.planes.place(row, 0)
                first = at + phase * self.planes.plane + offset + quad * QUAD * self.p.dilation[1]
                for v, place in enumerate(places):
                    pixels = self._windows(scratch, first + self._begin(v))
                    T.buffer_store(acc, self.dot.add(acc[place], pixels, weight, self.width), [place])
            y = self.epilogue.narrowed([acc[place] for place in places], steps, self.width, self.dot)
            T.buffer_store(rows, self._in_order(y), [run(tile * self.width, self.width)])

    def _weights(self, channel, i: int) -> Any:
        return T.Bind(T.reinterpret(f"int8x{self.width}", T.broadcast(self.data[channel, i], self.lanes)))

    def _windows(self, scratch, at) -> Any:
        loaded = T.Bind(scratch[run(at, self.width)])
        found = tirx.Shuffle([loaded], [T.int32(i) for i in self.windows])
        return T.Bind(T.reinterpret(f"int8x{self.width}", T.Bind(found)))

    def _begin(self, v: int) -> int:
        """Of the bytes that vector ``v`` is made of. With a stride of two 16 bytes hold eight outputs, two vectors."""
        return QUAD * v if self.p.stride[1] == 1 else v // 2 * self.width + v % 2 * QUAD * 2

    def _in_order(self, y) -> Any:
        """Bytes of a tile. With a stride of two each part has eight of its first half and eight of its second one."""
        if self.p.stride[1] == 1:
            return y
        parts, half = self.width // PART, PART // 2
        order = [PART * part + half * side + i for side in (0, 1) for part in range(parts) for i in range(half)]
        return tirx.Shuffle([y], [T.int32(i) for i in order])

    def _pixels(self, rows, plane) -> None:
        """The image's pixels of the rows that were computed, one row after the other."""
        width = self.p.out_width
        one = overrun(width, self.width)  # more than a row at once: the next one is written later

        def copy(y, parts: Iterable[tuple[Any, int, list[int]]]) -> None:
            for begin, step, offsets in parts:
                for x in (begin + offset for offset in offsets):
                    pixels = rows[run(y * self.pitch + x, step)]
                    T.buffer_store(self.epilogue.y, pixels, [run(plane + y * width + x, step)])

        with T.serial(0, self.p.out_height - 1) as y:
            copy(y, [(0, one, [0])] if one and one - width <= width else groups(width, self.width))
        copy(self.p.out_height - 1, groups(width, self.width))
