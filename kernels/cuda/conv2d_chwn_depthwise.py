"""conv2d_chwn_depthwise: one filter per channel, taps unrolled; a thread has VECTOR pixels of a channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.store import emit_store
from kerf.kernels.cuda.layout import VECTOR, in_rows, out_rows
from kerf.kernels.cuda.planewise import rows_of_vectors, window_taps
from kerf.kernels.problem import Problem
from kerf.kernels.vector import splat

name = "conv2d_chwn_depthwise"
TAPS = 25


def refuses(p: Problem, target: Target) -> str | None:
    if not p.depthwise:
        return "not a depthwise convolution"
    if p.taps > TAPS:
        return f"{p.taps} taps are not unrolled, more than {TAPS}"
    return gather.refuses(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return [{"threads": t} for t in (128, 256, 64, 32)]


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    return {"data": np.ascontiguousarray(w.reshape(p.out_channels, p.taps), np.float32)}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    """(x, data, bias, [residual], y)"""
    dtype = p.dtype
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_rows(p), dtype))
        data = T.arg("data", T.buffer((p.out_channels, p.taps), "float32"))
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(out_rows(p), dtype)) if p.residual else None
        y = T.arg("y", T.buffer(out_rows(p), dtype))
        with rows_of_vectors(out_rows(p), c["threads"]) as (channel, pixel):
            sums = T.alloc_buffer((VECTOR,), "float32", scope="local")
            for k in range(0, VECTOR, 4):
                T.buffer_store(sums, splat(0, 4), [T.ramp(k, 1, 4)])
            for tap, v in window_taps(p, x, channel, pixel, fill=0.0):
                w = T.Bind(data[channel, tap])
                for k in range(0, VECTOR, 4):
                    to = T.ramp(k, 1, 4)
                    T.buffer_store(sums, sums[to] + splat(w, 4) * v[to], [to])
            values = [sums[T.ramp(k, 1, 4)] for k in range(0, VECTOR, 4)]
            emit_store(p, y, residual, channel, pixel, values, bias[channel])
    return builder.get()
