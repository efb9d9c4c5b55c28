"""Operators without weights that work plane by plane: mean, scale by channel, max pooling. One pass over memory each,
nothing to tune; left to TVM's unscheduled code they took a tenth of MobileNet-V3.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kernels.direct import REGISTERS
from kernels.isa import parallel_loop, vector_unit
from kernels.layout import LINE, pitch
from kernels.planes import Planes
from kernels.problem import Problem
from kernels.vector import run, spans, splat

CHAINS = 4  # sums in flight: one alone would wait for itself
LOWEST = float(np.finfo(np.float32).min)  # what max pooling pads with


def mean(planes: int, pixels: int, target: Target) -> tvm.tirx.PrimFunc:
    """(x (planes, pitch), y (planes,)) -> y = mean of every plane's pixels."""
    lanes = next((n for n in (*vector_unit(target)[0], 4, 2) if n <= pixels), 1)
    vectors = pixels // lanes
    chains = min(CHAINS, vectors)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((planes, pitch(pixels)), "float32"))
        y = T.arg("y", T.buffer((planes,), "float32"))
        with parallel_loop(target)(0, planes) as c:
            acc = T.alloc_buffer((chains * lanes,), "float32", scope="local", annotations=REGISTERS)
            at = [run(i * lanes, lanes) for i in range(chains)]
            for i in range(chains):
                T.buffer_store(acc, x[c, run(i * lanes, lanes)], [at[i]])
            with T.serial(1, vectors // chains) as step:
                for i in range(chains):
                    T.buffer_store(acc, acc[at[i]] + x[c, run((step * chains + i) * lanes, lanes)], [at[i]])
            for v in range(vectors // chains * chains, vectors):
                T.buffer_store(acc, acc[at[0]] + x[c, run(v * lanes, lanes)], [at[0]])
            for i in range(1, chains):
                T.buffer_store(acc, acc[at[0]] + acc[at[i]], [at[0]])
            half = lanes
            while half > 1:
                half //= 2
                T.buffer_store(acc, acc[run(0, half)] + acc[run(half, half)], [run(0, half)])
            for i in range(vectors * lanes, pixels):
                T.buffer_store(acc, acc[0] + x[c, i], [0])
            T.buffer_store(y, acc[0] * T.float32(1 / pixels), [c])
    return builder.get()


def scale(planes: int, pixels: int, target: Target) -> tvm.tirx.PrimFunc:
    """(x (planes, pitch), factor (planes,), y) -> y = x * factor of its plane: what squeeze-excite ends with."""
    width = pitch(pixels)
    lanes, offsets = spans(width, vector_unit(target)[0][0])
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((planes, width), "float32"))
        factor = T.arg("factor", T.buffer((planes,), "float32"))
        y = T.arg("y", T.buffer((planes, width), "float32"))
        with parallel_loop(target)(0, planes) as c:
            f = T.Bind(splat(factor[c], lanes))
            with T.serial(0, len(offsets)) as i:
                at = run(T.min(i * lanes, width - lanes), lanes)
                T.buffer_store(y, x[c, at] * f, [c, at])
    return builder.get()


def repitch(planes: int, pixels: int, packed: bool, target: Target) -> tvm.tirx.PrimFunc:
    """(x, y): planes of ``pixels`` floats side by side to padded ones (kernels.layout), or, ``packed``, back."""
    sizes = (pitch(pixels), pixels) if packed else (pixels, pitch(pixels))
    lanes, offsets = spans(pixels, vector_unit(target)[0][0])
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((planes, sizes[0]), "float32"))
        y = T.arg("y", T.buffer((planes, sizes[1]), "float32"))
        with parallel_loop(target)(0, planes) as c:
            if sizes[1] > pixels:
                for i in range(sizes[1] - LINE, sizes[1], lanes):
                    T.buffer_store(y, splat(0, lanes), [c, run(i, lanes)])
            with T.serial(0, len(offsets)) as i:
                at = run(T.min(i * lanes, pixels - lanes), lanes)
                T.buffer_store(y, x[c, at], [c, at])
    return builder.get()


def max_pool(p: Problem, target: Target) -> tvm.tirx.PrimFunc:
    """(x, y), images as in kernels.layout. Of ``p`` count the shapes, the kernel, its stride, padding and dilation."""
    planes = Planes.of(p)
    lanes, offsets = spans(p.out_width, vector_unit(target)[0][0])
    taps = [planes.tap(*divmod(tap, p.kernel[1])) for tap in range(p.taps)]
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(p.in_planes, "float32"))
        y = T.arg("y", T.buffer(p.out_planes, "float32"))
        with parallel_loop(target)(0, p.batch * p.in_channels) as plane:
            image, channel = plane // p.in_channels, plane % p.in_channels
            if planes.copied:
                source, origin = T.alloc_buffer((planes.scratch(1),), "float32"), 0
                planes.emit_copy(x, source, image, channel, 1, lanes, T.serial, fill=LOWEST)
            else:
                source = T.decl_buffer((p.batch * p.in_channels * planes.channel,), "float32", data=x.data)
                origin = plane * planes.channel
            if p.out_planes[2] > p.out_height * p.out_width:
                for i in range(p.out_planes[2] - LINE, p.out_planes[2], lanes):
                    T.buffer_store(y, splat(0, lanes), [image, channel, run(i, lanes)])
            with T.serial(0, p.out_height) as row:
                for at in offsets:
                    value = source[run(origin + row * planes.pitch + at + taps[0], lanes)]
                    for tap in taps[1:]:
                        value = T.max(value, source[run(origin + row * planes.pitch + at + tap, lanes)])
                    T.buffer_store(y, value, [image, channel, run(row * p.out_width + at, lanes)])
    return builder.get()
