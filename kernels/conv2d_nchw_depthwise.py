"""conv2d_nchw_depthwise: one filter per channel, any kernel size, stride, padding, dilation and batch.

Memory-bound: a channel's padded plane is copied to a scratch that stays in cache, and a tile of output rows is summed
in registers, so that the rows shared by neighbouring outputs are loaded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kernels.direct import REGISTERS, Output
from kernels.isa import parallel_loop, vector_unit
from kernels.layout import LINE
from kernels.planes import Planes
from kernels.problem import Problem
from kernels.vector import even_tiles, run, spans, splat

name = "conv2d_nchw_depthwise"
MAX_CODE = 512  # multiply-adds of a tile, all unrolled
CHUNKS = 16  # parallel pieces of the channel loop, each with a scratch plane of its own


def refuses(p: Problem, target: Target) -> str | None:
    if p.block:
        return "weights are block-sparse"
    return None if p.depthwise else f"{p.groups} groups over {p.in_channels}->{p.out_channels} channels: not depthwise"


def configs(p: Problem, target: Target) -> Sequence[dict]:
    """Config "rows" output rows a tile, vectors of "lanes" along a row."""
    widths, registers = vector_unit(target)
    found = {}
    for wide in (*widths, 4):
        lanes, offsets = spans(p.out_width, wide)
        waste = len(offsets) * lanes / p.out_width
        for most in (registers - 4, registers // 2, registers // 4, registers // 8):
            most = min(most, MAX_CODE // p.taps)
            rows = max(1, min(p.out_height, most // len(offsets)))
            # half the registers in accumulators was best on every plane tried: more leaves no room for shared rows
            cost = waste * max(8 / lanes, 1) * (1 + abs(rows * len(offsets) - registers // 2) / registers)
            found.setdefault((lanes, rows), (cost, {"lanes": lanes, "rows": rows}))
    return [c for _, c in sorted(found.values(), key=lambda f: f[0])]


def pack(p: Problem, w: np.ndarray, c: dict) -> dict[str, np.ndarray]:
    """w (C, 1, kh, kw) -> data (C, taps)."""
    return {"data": np.ascontiguousarray(w.reshape(p.out_channels, p.taps))}


def prim_func(p: Problem, c: dict, target: Target) -> tvm.tirx.PrimFunc:
    planes = Planes.of(p)
    height, width = p.out_height, p.out_width
    lanes, offsets = spans(width, c["lanes"])
    chunk = -(-p.in_channels // CHUNKS)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(p.in_planes, "float32"))
        data = T.arg("data", T.buffer((p.out_channels, p.taps), "float32"))
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(p.out_planes, "float32")) if p.residual else None
        y = T.arg("y", T.buffer(p.out_planes, "float32"))
        out = Output(p, y, residual)
        with T.serial(0, p.batch) as image, parallel_loop(target)(0, CHUNKS) as k:
            plane = T.alloc_buffer((planes.scratch(1),), "float32")
            with T.serial(0, T.max(T.min(chunk, p.in_channels - k * chunk), 0)) as i:
                channel = T.Bind(k * chunk + i)
                if planes.copied:
                    planes.emit_copy(x, plane, image, channel, 1, c["lanes"], T.serial)
                if out.pitch > height * width:
                    out.blank(out.plane(image, channel), out.pitch - LINE, c["lanes"])

                def load(offset, row, at, channel=channel, image=image, plane=plane):
                    if planes.copied:
                        return plane[run(row * planes.pitch + at + offset, lanes)]
                    return x[image, channel, run(row * p.width + at + offset, lanes)]

                def store(value, row, at, channel=channel, image=image):
                    out.store(value + splat(bias[channel], lanes), out.plane(image, channel) + row * width + at, lanes)

                for first, tiles, rows in even_tiles(height, c["rows"]):
                    with T.serial(0, tiles) as t:
                        _tile(p, planes, rows, offsets, lanes, first + t * rows, data, channel, load, store)
    return builder.get()


def _tile(p, planes, rows, offsets, lanes, row0, data, channel, load, store) -> None:
    acc = T.alloc_buffer((rows * len(offsets) * lanes,), "float32", scope="local", annotations=REGISTERS)

    def at(r, v):
        return run((r * len(offsets) + v) * lanes, lanes)

    for r in range(rows):
        for v in range(len(offsets)):
            T.buffer_store(acc, splat(0, lanes), [at(r, v)])
    for tap in range(p.taps):
        weight = T.Bind(splat(data[channel, tap], lanes))
        for r in range(rows):
            for v, x in enumerate(offsets):
                value = load(planes.tap(*divmod(tap, p.kernel[1])), row0 + r, x)
                T.buffer_store(acc, acc[at(r, v)] + weight * value, [at(r, v)])
    for r in range(rows):
        for v, x in enumerate(offsets):
            store(acc[at(r, v)], row0 + r, x)
