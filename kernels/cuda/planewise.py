"""What is done channel by channel: pooling, and the product that ends squeeze-excite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.store import as_float, lanes, load
from kerf.kernels.cuda.emit.window import Window, flat
from kerf.kernels.cuda.layout import VECTOR, images_at_once, in_rows, out_rows, rows_of
from kerf.kernels.problem import Problem
from kerf.kernels.vector import splat

THREADS = 128
LOWEST = -65504.0  # of float16; no pooled image is lower


@contextmanager
def rows_of_vectors(shape: tuple[int, int], threads: int = THREADS) -> Iterator[tuple]:
    """A thread for every VECTOR numbers of rows (channels, pitch); yields (channel, first number)."""
    channels, width = shape
    with (
        T.launch_thread("blockIdx.x", -(-width // (threads * VECTOR))) as tile,
        T.launch_thread("blockIdx.y", channels) as channel,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        pixel = T.Bind((tile * threads + thread) * VECTOR)
        with T.If(pixel < width), T.Then():
            yield channel, pixel


def window_taps(p: Problem, x, channel, pixel, fill: float) -> Iterator[tuple]:
    """(tap, buffer of VECTOR float32) for every tap of a channel's own plane; ``fill`` outside the image."""
    source, at_once = flat(p, x, x.dtype), gather.contiguous(p, VECTOR)
    windows = [Window(p, pixel + k if k else pixel) for k in range(0, VECTOR, at_once)]
    v = T.alloc_buffer((VECTOR,), "float32", scope="local")
    origin = T.Bind(channel * in_rows(p)[1])
    for tap in range(p.taps):
        dy, dx = gather.shift(p, tap)
        offset = origin + (dy * p.width + dx) * p.batch
        for k, window in enumerate(windows):
            load(v, k * at_once, source, window.base + offset, window.valid(tap), at_once, fill)
        yield tap, v


def max_pool(p: Problem, dtype: str) -> tvm.tirx.PrimFunc:
    """(x, y) in rows. Of ``p`` count the shapes, the kernel, its stride, padding and dilation."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_rows(p), dtype))
        y = T.arg("y", T.buffer(out_rows(p), dtype))
        with rows_of_vectors(out_rows(p)) as (channel, pixel):
            best = T.alloc_buffer((VECTOR,), "float32", scope="local")
            for k in range(0, VECTOR, 4):
                T.buffer_store(best, splat(LOWEST, 4), [T.ramp(k, 1, 4)])
            for _, v in window_taps(p, x, channel, pixel, fill=LOWEST):
                for k in range(VECTOR):
                    T.buffer_store(best, T.max(best[k], v[k]), [k])
            _write(y, channel, pixel, best)
    return builder.get()


def mean(shape: tuple[int, int, int, int], dtype: str) -> tvm.tirx.PrimFunc:
    """(x, y): the mean of every plane, (c, pitch) -> (c, pitch of 1 x 1). A CTA for up to 32 images of a channel."""
    n, c, h, w = shape
    inner, outer = rows_of(shape), rows_of((n, c, 1, 1))
    images = images_at_once(n)
    parts = THREADS // images  # both powers of two: parts are added up by halves
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(inner, dtype))
        y = T.arg("y", T.buffer(outer, dtype))
        with (
            T.launch_thread("blockIdx.x", -(-n // images)) as block,
            T.launch_thread("blockIdx.y", c) as channel,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            image = T.Bind(block * images + thread % images)
            part = T.Bind(thread // images)
            total = T.alloc_buffer((1,), "float32", scope="local")
            T.buffer_store(total, T.float32(0), [0])
            with T.If(image < n), T.Then(), T.serial(0, (h * w - part + parts - 1) // parts) as i:
                pixel = part + i * parts
                T.buffer_store(total, total[0] + as_float(x[channel, pixel * n + image], 1), [0])
            sums = T.alloc_buffer((THREADS,), "float32", scope="shared")  # TVM has threads wait between its uses
            T.buffer_store(sums, total[0], [thread])
            half = parts // 2
            while half:
                with T.If(part < half), T.Then():
                    T.buffer_store(sums, sums[thread] + sums[thread + half * images], [thread])
                half //= 2
            with T.If(tirx.all(part == 0, image < n)), T.Then():
                T.buffer_store(y, T.cast(sums[thread] * T.float32(1 / (h * w)), dtype), [channel, image])
            with T.If(tirx.all(block == 0, n + thread < outer[1])), T.Then():
                T.buffer_store(y, T.cast(T.float32(0), dtype), [channel, n + thread])
    return builder.get()


def scale(shape: tuple[int, int, int, int], dtype: str) -> tvm.tirx.PrimFunc:
    """(x, factor of 1 x 1 images, y) -> y = x * the factor of its channel and image."""
    n, c, _, _ = shape
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(rows_of(shape), dtype))
        factor = T.arg("factor", T.buffer(rows_of((n, c, 1, 1)), dtype))
        y = T.arg("y", T.buffer(rows_of(shape), dtype))
        with rows_of_vectors(rows_of(shape)) as (channel, pixel):
            product = T.alloc_buffer((VECTOR,), "float32", scope="local")
            for k in range(VECTOR):
                by = as_float(factor[channel, (pixel + k) % n], 1)
                T.buffer_store(product, as_float(x[channel, pixel + k], 1) * by, [k])
            _write(y, channel, pixel, product)
    return builder.get()


def _write(y, channel, pixel, values) -> None:
    """VECTOR float32 from registers to y."""
    wide = lanes(y.dtype)
    out = T.alloc_buffer((VECTOR,), y.dtype, scope="local")
    for k in range(0, VECTOR, 4):
        T.buffer_store(out, T.cast(values[T.ramp(k, 1, 4)], f"{y.dtype}x4"), [T.ramp(k, 1, 4)])
    for k in range(0, VECTOR, wide):
        T.buffer_store(y, out[T.ramp(k, 1, wide)], [channel, T.ramp(pixel + k, 1, wide)])
