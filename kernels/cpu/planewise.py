"""Operators without weights that work plane by plane: mean, scale by channel, softmax over channels, pooling. One pass
over memory each, nothing to tune; left to TVM's unscheduled code they took a tenth of MobileNet-V3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import LINE, in_planes, out_planes, pitch
from kerf.kernels.cpu.machine import lanes_of, machine_of, parallel_loop
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.pointwise.exponential import exp
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType
from kerf.kernels.vector import cast, covering, groups, run, spans, splat

TOGETHER = 2  # vectors of softmax: the loads of one hide behind the exponentials of another
CHAINS = 4  # sums in flight: one alone would wait for itself
LOWEST = {"float32": float(np.finfo(np.float32).min), "int8": -128.0, "uint8": 0.0}  # what max pooling pads with


def mean(shape: tuple[int, int, int, int], target: Target, x_type: TensorType = F32) -> tvm.tirx.PrimFunc:
    """(x (n, c, pitch), y (n, c, 1) of float32): the mean of every plane's pixels, of images of ``shape``.

    Integers are summed as integers, exactly, and their mean stands for a number by the scale and zero point of
    ``x_type``.
    """
    planes, pixels = shape[0] * shape[1], shape[2] * shape[3]
    wide = "int32" if x_type.quantised else "float32"
    lanes = next((n for n in (*machine_of(target).lanes, 4, 2) if n <= pixels), 1)

    def loaded(x, at, lanes: int):
        return x[at] if wide == "float32" else cast(x[at], wide, lanes)

    vectors = pixels // lanes
    chains = min(CHAINS, vectors)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        images = T.arg("x", T.buffer((*shape[:2], pitch(pixels)), x_type.numpy))
        means = T.arg("y", T.buffer((*shape[:2], 1), "float32"))
        x = T.decl_buffer((planes * pitch(pixels),), x_type.numpy, data=images.data)
        y = T.decl_buffer((planes,), "float32", data=means.data)
        with parallel_loop(target)(0, planes) as c:
            acc = T.alloc_buffer((chains * lanes,), wide, scope="local", annotations=REGISTERS)
            at = [run(i * lanes, lanes) for i in range(chains)]
            plane = T.Bind(c * pitch(pixels))
            for i in range(chains):
                T.buffer_store(acc, loaded(x, run(plane + i * lanes, lanes), lanes), [at[i]])
            with T.serial(1, vectors // chains) as step:
                for i in range(chains):
                    vector = loaded(x, run(plane + (step * chains + i) * lanes, lanes), lanes)
                    T.buffer_store(acc, acc[at[i]] + vector, [at[i]])
            for v in range(vectors // chains * chains, vectors):
                T.buffer_store(acc, acc[at[0]] + loaded(x, run(plane + v * lanes, lanes), lanes), [at[0]])
            for i in range(1, chains):
                T.buffer_store(acc, acc[at[0]] + acc[at[i]], [at[0]])
            half = lanes
            while half > 1:
                half //= 2
                T.buffer_store(acc, acc[run(0, half)] + acc[run(half, half)], [run(0, half)])
            for i in range(vectors * lanes, pixels):
                T.buffer_store(acc, acc[0] + loaded(x, plane + i, 1), [0])
            total = acc[0] - T.int32((x_type.zero or 0) * pixels) if x_type.quantised else acc[0]
            T.buffer_store(y, T.cast(total, "float32") * T.float32((x_type.scale or 1.0) / pixels), [c])
    return builder.get()


def scale(shape: tuple[int, int, int, int], target: Target) -> tvm.tirx.PrimFunc:
    """(x (n, c, pitch), factor (n, c, 1), y) -> y = x * factor of its plane: what squeeze-excite ends with."""
    planes, width = shape[0] * shape[1], pitch(shape[2] * shape[3])
    lanes, offsets = spans(width, machine_of(target).lanes[0])
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        images = T.arg("x", T.buffer((*shape[:2], width), "float32"))
        factors = T.arg("factor", T.buffer((*shape[:2], 1), "float32"))
        products = T.arg("y", T.buffer((*shape[:2], width), "float32"))
        x, y = (T.decl_buffer((planes, width), "float32", data=a.data) for a in (images, products))
        factor = T.decl_buffer((planes,), "float32", data=factors.data)
        with parallel_loop(target)(0, planes) as c:
            f = T.Bind(splat(factor[c], lanes))
            with T.serial(0, len(offsets)) as i:
                at = run(T.min(i * lanes, width - lanes), lanes)
                T.buffer_store(y, x[c, at] * f, [c, at])
    return builder.get()


def softmax(shape: tuple[int, int, int, int], target: Target) -> tvm.tirx.PrimFunc:
    """(x (n, c, pitch), y): e^x of every pixel over the sum of its channels', the largest taken from all first."""
    n, c, h, w = shape
    width = pitch(h * w)
    lanes, offsets = spans(width, TOGETHER * machine_of(target).lanes[0])
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        images = T.arg("x", T.buffer((n, c, width), "float32"))
        result = T.arg("y", T.buffer((n, c, width), "float32"))
        with parallel_loop(target)(0, n * len(offsets)) as part:
            image, at = part // len(offsets), run(T.Bind(T.min(part % len(offsets) * lanes, width - lanes)), lanes)
            most, total = (T.alloc_buffer((lanes,), "float32", scope="local", annotations=REGISTERS) for _ in range(2))
            all_ = run(0, lanes)
            T.buffer_store(most, images[image, 0, at], [all_])
            with T.serial(1, c) as k:
                T.buffer_store(most, T.max(most[all_], images[image, k, at]), [all_])
            T.buffer_store(total, splat(0, lanes), [all_])
            with T.serial(0, c) as k:
                power = T.Bind(exp(images[image, k, at] - most[all_], lanes))
                T.buffer_store(total, total[all_] + power, [all_])
                T.buffer_store(result, power, [image, k, at])
            factor = T.Bind(splat(1, lanes) / total[all_])
            with T.serial(0, c) as k:
                T.buffer_store(result, result[image, k, at] * factor, [image, k, at])
    return builder.get()


def to_planes(shape: tuple[int, int, int, int], target: Target, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """(x NCHW, y): an image of ``shape`` into padded planes (kerf.kernels.cpu.layout)."""
    return _repitch(shape, target, dtype, packed=False)


def from_planes(shape: tuple[int, int, int, int], target: Target, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """(x, y NCHW): padded planes to an image of ``shape``."""
    return _repitch(shape, target, dtype, packed=True)


def _repitch(shape: tuple[int, int, int, int], target: Target, dtype: str, packed: bool) -> tvm.tirx.PrimFunc:
    n, c, h, w = shape
    pixels = h * w
    padded = (n, c, pitch(pixels))
    lanes, offsets = spans(pixels, lanes_of(target, dtype))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(padded if packed else shape, dtype))
        y = T.arg("y", T.buffer(shape if packed else padded, dtype))
        step, skip = (padded[2], pixels) if packed else (pixels, padded[2])
        source = T.decl_buffer((n * c * step,), dtype, data=x.data)
        to = T.decl_buffer((n * c * skip,), dtype, data=y.data)
        with parallel_loop(target)(0, n * c) as plane:
            if not packed and padded[2] > pixels:
                step_of = min(lanes, LINE)
                for i in range(padded[2] - LINE, padded[2], step_of):
                    T.buffer_store(to, splat(0, step_of, dtype), [run(plane * skip + i, step_of)])
            with T.serial(0, len(offsets)) as i:
                at = T.min(i * lanes, pixels - lanes)
                T.buffer_store(to, source[run(plane * step + at, lanes)], [run(plane * skip + at, lanes)])
    return builder.get()


def max_pool(p: Problem, target: Target) -> tvm.tirx.PrimFunc:
    """(x, y), images of the type of ``p.x`` as in layout.py. Of ``p`` count the shapes, the kernel, its stride, padding
    and dilation.
    """
    return _pool(p, target, p.dtype, LOWEST[p.dtype], T.max)


def average_pool(p: Problem, target: Target, x_type: TensorType = F32) -> tvm.tirx.PrimFunc:
    """(x, factors (1, 1, pitch), y of float32): the sums of windows, by a factor for each pixel. ``p`` as in max_pool.

    Integers, of the scale and zero point of ``x_type``, are padded with the zero point, which stands for 0.
    """
    zero, scale = float(x_type.zero or 0), x_type.scale or 1.0

    def finished(sums, factors, lanes: int):
        if x_type.quantised:
            sums = (sums - splat(zero * p.taps, lanes)) * splat(scale, lanes)
        return sums * factors

    return _pool(p, target, "float32", zero, lambda a, b: a + b, finished)


def _pool(
    p: Problem, target: Target, result: str, fill: float, combine: Callable, finished: Callable | None = None
) -> tvm.tirx.PrimFunc:
    """Pads with ``fill``, and takes all numbers of a window together with ``combine``, as numbers of ``result``.

    ``finished``: y of what that gives, of the pixels' factors, which the function takes then, and of a number of lanes.
    """

    def loaded(pixels, lanes: int):
        return pixels if p.dtype == result else cast(pixels, result, lanes)

    planes = Planes.of(p)
    wide = lanes_of(target, p.dtype)
    lanes, _ = covering(p.out_width, wide)
    taps = [planes.tap(*divmod(tap, p.kernel[1])) for tap in range(p.taps)]
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), p.dtype))
        by = T.arg("factors", T.buffer((1, 1, out_planes(p)[2]), "float32")) if finished else None
        y = T.arg("y", T.buffer(out_planes(p), result))
        out = Output.of(p, y, None)
        with parallel_loop(target)(0, p.batch * p.in_channels) as plane:
            image, channel = plane // p.in_channels, plane % p.in_channels
            source, origin = T.decl_buffer((math.prod(in_planes(p)),), p.dtype, data=x.data), plane * in_planes(p)[2]
            if planes.copied:
                copy = T.alloc_buffer((planes.scratch(1),), p.dtype)
                Padding(planes, source, copy, lanes, fill=fill).copy(origin, 1, T.serial)
                source, origin = copy, 0
            if out.pitch > p.out_height * p.out_width:
                out.blank(plane * out.pitch, out.pitch - LINE, lanes)
            with T.serial(0, p.out_height) as row:
                for begin, lanes, offsets in groups(p.out_width, wide):
                    for at in (begin + offset for offset in offsets):
                        value = loaded(source[run(origin + row * planes.pitch + at + taps[0], lanes)], lanes)
                        for tap in taps[1:]:
                            pixels = source[run(origin + row * planes.pitch + at + tap, lanes)]
                            value = combine(value, loaded(pixels, lanes))
                        pixel = run(row * p.out_width + at, lanes)
                        if finished is not None and by is not None:
                            value = finished(value, by[0, 0, pixel], lanes)
                        T.buffer_store(y, value, [image, channel, pixel])
    return builder.get()
