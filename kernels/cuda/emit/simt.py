"""Convolution without tensor cores, exact in float32, over gathered channels: the program of bsr_simt and dense_simt.

for block row, tile of pixels:                    # one CTA each; a thread has all filters and VECTOR pixels
    for (channel, tap), weights of the block row's list:
        v = x[channel, pixels shifted by the tap], zeros outside
        for r: sums[r, :] += weights[r] * v
    y = activation(sums + bias + residual)
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.store import emit_store, load
from kerf.kernels.cuda.emit.window import Window, flat
from kerf.kernels.cuda.layout import VECTOR, in_rows, out_rows
from kerf.kernels.problem import Problem
from kerf.kernels.vector import splat


def prim_func(p: Problem, c: Config, rows: int) -> tvm.tirx.PrimFunc:
    """(x, data, offsets, [taps], starts, bias, [residual], y)"""
    dtype, block_rows = p.dtype, -(-p.out_channels // rows)
    count, width = gather.entries(p, rows), out_rows(p)[1]
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_rows(p), dtype))
        data = T.arg("data", T.buffer((count, rows), "float32"))
        offsets = T.arg("offsets", T.buffer((count,), "int32"))
        taps = T.arg("taps", T.buffer((count,), "int32")) if gather.bounded(p) else None
        starts = T.arg("starts", T.buffer((block_rows + 1,), "int32"))
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(out_rows(p), dtype)) if p.residual else None
        y = T.arg("y", T.buffer(out_rows(p), dtype))
        source = flat(p, x, dtype)
        with (
            T.launch_thread("blockIdx.x", block_rows) as block,
            T.launch_thread("blockIdx.y", -(-width // (c["threads"] * VECTOR))) as tile,
            T.launch_thread("threadIdx.x", c["threads"]) as thread,
        ):
            pixel = T.Bind((tile * c["threads"] + thread) * VECTOR)
            at_once = gather.contiguous(p, VECTOR)
            windows = [Window(p, pixel + k if k else pixel) for k in range(0, VECTOR, at_once)]
            sums = T.alloc_buffer((rows * VECTOR,), "float32", scope="local")
            for k in range(0, rows * VECTOR, 4):
                T.buffer_store(sums, splat(0, 4), [T.ramp(k, 1, 4)])
            v = T.alloc_buffer((VECTOR,), "float32", scope="local")
            with T.serial(starts[block], starts[block + 1]) as entry:
                offset, tap = T.Bind(offsets[entry]), T.Bind(taps[entry]) if taps is not None else 0
                for k, window in enumerate(windows):
                    load(v, k * at_once, source, window.base + offset, window.valid(tap), at_once)
                for r in range(rows):
                    w = T.Bind(data[entry, r])
                    for k in range(0, VECTOR, 4):
                        to = T.ramp(r * VECTOR + k, 1, 4)
                        T.buffer_store(sums, sums[to] + splat(w, 4) * v[T.ramp(k, 1, 4)], [to])
            for r in range(rows):
                channel = block * rows + r
                with T.If(tirx.all(channel < p.out_channels, pixel < width)), T.Then():
                    values = [sums[T.ramp(r * VECTOR + k, 1, 4)] for k in range(0, VECTOR, 4)]
                    emit_store(p, y, residual, channel, pixel, values, bias[channel])
    return builder.get()
