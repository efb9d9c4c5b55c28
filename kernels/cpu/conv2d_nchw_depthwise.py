"""conv2d_nchw_depthwise: one filter per channel, any kernel size, stride, padding, dilation and batch.

Memory-bound: a channel's padded plane is copied to a scratch that stays in cache, and a tile of output rows is summed
in registers, so that the rows shared by neighbouring outputs are loaded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import LINE, in_planes, out_planes
from kerf.kernels.cpu.machine import Machine, machine_of, parallel_loop
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem, computes
from kerf.kernels.vector import even_tiles, groups, overrun, run, spans, splat

name = "conv2d_nchw_depthwise"
MAX_CODE = 512  # multiply-adds of a tile, all unrolled
CHUNKS = 16  # parallel pieces of the channel loop, each with a scratch plane of its own


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if p.n:
        return "weights are block-sparse"
    return None if p.depthwise else f"{p.groups} groups over {p.in_channels}->{p.out_channels} channels: not depthwise"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    """Config "rows" output rows a tile, vectors of "lanes" along a row."""
    machine = machine_of(target)
    found: dict[tuple, tuple[float, Config]] = {}
    registers = machine.registers
    for wide in machine.lanes:
        lanes, offsets = _row(p, wide)
        for most in (registers - 4, registers // 2, registers // 3, registers // 4, registers // 8):
            rows = max(1, min(p.out_height, MAX_CODE // p.taps, most) // len(offsets))
            rows = even_tiles(p.out_height, min(rows, p.out_height))[0][2]
            # a third of the registers in accumulators was best on most planes: more leaves no room for shared rows
            cost = len(offsets) * (1 + abs(rows * len(offsets) - registers // 3) / registers)
            found.setdefault((lanes, rows), (cost, {"lanes": wide, "rows": rows}))
    return [c for _, c in sorted(found.values(), key=lambda f: f[0])]


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (C, 1, kh, kw) -> data (C, taps)."""
    return {"data": np.ascontiguousarray(w.reshape(p.out_channels, p.taps))}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    chunk = -(-p.in_channels // CHUNKS)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "float32"))
        data, bias = declare(p)
        residual = T.arg("residual", T.buffer(out_planes(p), "float32")) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), "float32"))
        flat = T.decl_buffer((math.prod(in_planes(p)),), "float32", data=x.data)
        emit = Channels(p, c, machine_of(target), data, bias, Output.of(p, y, residual))
        with T.serial(0, p.batch) as image, parallel_loop(target)(0, CHUNKS) as k:
            first = T.Bind(k * chunk)
            origin = (image * p.in_channels + first) * in_planes(p)[2]
            emit.channels(flat, origin, image, first, T.max(T.min(chunk, p.in_channels - first), 0))
    return builder.get()


def _row(p: Problem, wide: int) -> tuple[int, list[int]]:
    """Vectors over an output row: (lanes, offsets)."""
    one = overrun(p.out_width, wide)
    if one and p.out_height * p.out_width + one - p.out_width <= out_planes(p)[2]:
        return one, [0]  # what is too much is in the next row, which is stored later, or in the padding
    return spans(p.out_width, wide)


def _along(p: Problem, wide: int) -> Iterable[tuple[Any, int, list[int]]]:
    """The same as parts of a row, of which a long one has many (vector.groups)."""
    lanes, offsets = _row(p, wide)
    return [(0, lanes, offsets)] if lanes > p.out_width else groups(p.out_width, wide)


def declare(p: Problem, name: str = "data") -> tuple[Any, Any]:
    """The weights as parameters of the function being built: (data, bias)."""
    data = T.arg(name, T.buffer((p.out_channels, p.taps), "float32"))
    return data, T.arg(f"{name}_bias", T.buffer((p.out_channels,), "float32"))


class Results(Protocol):
    """Where sums go: Output, or what stands for it."""

    @property
    def pitch(self) -> int: ...
    def plane(self, image: Any, channel: Any) -> Any: ...
    def store_row(self, vectors: Sequence[Any], at: Any, offsets: Sequence[int], lanes: int) -> None: ...
    def blank(self, plane: Any, begin: int, lanes: int) -> None: ...


class Channels:
    """The code of one channel, for whatever loop is around it."""

    def __init__(self, p: Problem, c: Config, machine: Machine, data, bias, out: Results):
        self.p, self.c, self.machine, self.planes = p, c, machine, Planes.of(p)
        self.data, self.bias, self.out = data, bias, out

    def channels(self, src, origin, image, first, count) -> None:
        """``count`` channels from ``first``, whose planes start at float ``origin`` of ``src``, a few at a time."""
        planes, step = self.planes, in_planes(self.p)[2]
        if not planes.copied:
            with T.serial(0, count) as i:
                self._channel(src, origin + i * step, image, T.Bind(first + i))
            return
        # all copies before the first sum: a load that spans stores just made waits until they have left the core
        few = max(1, self.machine.l1_floats // 8 // planes.channel)
        scratch = T.alloc_buffer((planes.scratch(few),), "float32")
        with T.serial(0, (count + few - 1) // few) as k:
            done = T.Bind(k * few)
            some = T.Bind(T.min(few, count - done)) if few > 1 else 1
            Padding(planes, src, scratch, self.c["lanes"]).copy(origin + done * step, some, T.serial)
            with T.serial(0, some) as i:
                self._channel(scratch, i * planes.channel, image, T.Bind(first + done + i))

    def _channel(self, src, origin, image, channel) -> None:
        height, width = self.p.out_height, self.p.out_width
        plane = T.Bind(self.out.plane(image, channel))
        if self.out.pitch > height * width:
            self.out.blank(plane, self.out.pitch - LINE, self.c["lanes"])
        weights, start = self._weights(channel), self._start(channel)
        for first, tiles, rows in even_tiles(height, self.c["rows"]):
            with T.serial(0, tiles) as t:
                row0 = T.Bind(first + t * rows)
                for begin, lanes, offsets in _along(self.p, self.c["lanes"]):
                    at = origin + row0 * self.planes.pitch + begin
                    sums = self._tile(rows, offsets, lanes, src, at, weights, start)
                    for r in range(rows):
                        vectors = [sums(r, v) for v in range(len(offsets))]
                        self.out.store_row(vectors, plane + (row0 + r) * width + begin, offsets, lanes)

    def _weights(self, channel) -> list:
        return [T.Bind(self.data[channel, tap]) for tap in range(self.p.taps)]

    def _start(self, channel):
        return T.Bind(self.bias[channel])

    def _tile(self, rows, offsets, lanes, src, origin, weights, start) -> Callable:
        acc = T.alloc_buffer((rows * len(offsets) * lanes,), "float32", scope="local", annotations=REGISTERS)

        def at(r, v):
            return run((r * len(offsets) + v) * lanes, lanes)

        for r in range(rows):
            for v in range(len(offsets)):
                T.buffer_store(acc, splat(start, lanes), [at(r, v)])
        for tap, weight in enumerate(weights):
            offset = self.planes.tap(*divmod(tap, self.p.kernel[1]))
            for r in range(rows):
                for v, x in enumerate(offsets):
                    pixels = src[run(origin + r * self.planes.pitch + x + offset, lanes)]
                    T.buffer_store(acc, acc[at(r, v)] + splat(weight, lanes) * pixels, [at(r, v)])
        return lambda r, v: acc[at(r, v)]
