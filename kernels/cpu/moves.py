"""Pixels that go to other places: planes in another order, or fewer, and images enlarged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.layout import LINE, pitch
from kerf.kernels.cpu.machine import lanes_of, parallel_loop
from kerf.kernels.form import Order, Shape
from kerf.kernels.vector import groups, run, spans, splat


def planes(order: Order, shape: Shape, channels: int, target: Target, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """(x (n, c, pitch) of ``shape``, y (n, channels, pitch)), of ``dtype``: channel k of y is channel order(k) of x."""
    n, c, h, w = shape
    width = pitch(h * w)
    lanes, offsets = spans(width, lanes_of(target, dtype))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, y = T.arg("x", T.buffer((n, c, width), dtype)), T.arg("y", T.buffer((n, channels, width), dtype))
        with parallel_loop(target)(0, n * channels) as plane:
            image, channel = T.Bind(plane // channels), T.Bind(plane % channels)
            source = T.Bind(order.first + channel % order.run * order.step + channel // order.run * order.stride)
            with T.serial(0, len(offsets)) as i:
                at = run(T.min(i * lanes, width - lanes), lanes)
                T.buffer_store(y, x[image, source, at], [image, channel, at])
    return builder.get()


def enlarge(factors: tuple[int, int], shape: Shape, target: Target, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """(x of ``shape``, y (n, c, h factors[0], w factors[1])), in planes of ``dtype``: each pixel is repeated."""
    n, c, h, w = shape
    down, across = factors
    width = w * across
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, y = _planes_of(shape, (n, c, h * down, width), dtype)
        with parallel_loop(target)(0, n * c) as plane:
            _end(y, plane, h * down * width, dtype)
            with T.serial(0, h) as row:
                for begin, lanes, offsets in groups(w, lanes_of(target, dtype)):
                    for at in (begin + offset for offset in offsets):
                        pixels = T.Bind(x[plane, run(row * w + at, lanes)])
                        for part in range(across):  # of the vectors that this one becomes
                            value = pixels if across == 1 else _repeated(pixels, part * lanes, across, lanes)
                            for line in range(down):
                                to = (row * down + line) * width + at * across + part * lanes
                                T.buffer_store(y, value, [plane, run(to, lanes)])
    return builder.get()


def spread(
    factor: int, steps: tuple[int, int], shape: Shape, target: Target, dtype: str = "float32"
) -> tvm.tirx.PrimFunc:
    """(x (n, c, h, w) of ``shape``, y (n, c / f^2, h f, w f)), in planes of ``dtype``, f the ``factor``: pixel
    (f i + a, f j + b) of channel k of y is pixel (i, j) of channel k steps[0] + (f a + b) steps[1] of x.
    """
    n, c, h, w = shape
    made, width = c // factor**2, w * factor
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, y = _planes_of(shape, (n, made, h * factor, width), dtype)
        with parallel_loop(target)(0, n * made) as plane:
            first = T.Bind(plane // made * c + plane % made * steps[0])
            _end(y, plane, h * factor * width, dtype)
            with T.serial(0, h) as row, T.serial(0, factor) as line:
                source = T.Bind(first + line * factor * steps[1])
                for begin, lanes, offsets in groups(w, lanes_of(target, dtype)):
                    for at in (begin + offset for offset in offsets):
                        read = run(row * w + at, lanes)
                        pixels = [T.Bind(x[source + b * steps[1], read]) for b in range(factor)]
                        for part in range(factor):
                            to = (row * factor + line) * width + at * factor + part * lanes
                            T.buffer_store(y, _in_turn(pixels, part * lanes, lanes), [plane, run(to, lanes)])
    return builder.get()


def _planes_of(shape: Shape, out: Shape, dtype: str) -> tuple:
    """The arguments x and y of the function being built, images of these shapes, as (planes, pitch)."""
    given = [T.arg(name, T.buffer((n, c, pitch(h * w)), dtype)) for name, (n, c, h, w) in (("x", shape), ("y", out))]
    sizes = [(n * c, pitch(h * w)) for n, c, h, w in (shape, out)]
    x, y = (T.decl_buffer(size, dtype, data=images.data) for size, images in zip(sizes, given))
    return x, y


def _end(y, plane, pixels: int, dtype: str) -> None:
    """Zeros behind the pixels of a plane."""
    for k in range(pitch(pixels) - LINE, pitch(pixels)) if pitch(pixels) > pixels else ():
        T.buffer_store(y, tirx.const(0, dtype), [plane, k])


def _in_turn(vectors: list, first: int, lanes: int):
    """``lanes`` entries from ``first`` on of all vectors' first entries, their second ones, and so on."""
    count = len(vectors)
    if lanes == 1:
        return vectors[first % count]
    return tirx.Shuffle(vectors, [T.int32((first + i) % count * lanes + (first + i) // count) for i in range(lanes)])


def _repeated(vector, first: int, times: int, lanes: int):
    """Entries from ``first`` on of a vector whose lanes are each repeated."""
    if lanes == 1:
        return vector
    return tirx.Shuffle([vector], [T.int32((first + i) // times) for i in range(lanes)])


class Tables(NamedTuple):
    """What interpolate takes besides the image, by the names in its docstring."""

    start: np.ndarray  # (vectors,) int32
    weight: np.ndarray  # (vectors, K, lanes)
    first: np.ndarray  # (h + 1,) int32: the first row of y that row r of x ends; of h the number of them
    f: np.ndarray  # (out_h,)


def tables(rows: np.ndarray, columns: np.ndarray, shape: Shape, target: Target) -> Tables:
    """``rows``, ``columns``: where y's lie on x of ``shape``, ascending, in pixels from the middle of the first."""
    lanes, offsets = spans(len(columns), lanes_of(target, "float32"))
    left, right = _between(columns, shape[3])
    reach = max(int(left[at + lanes - 1] - left[at]) for at in offsets) + min(2, shape[3])
    start = np.array([min(left[at], shape[3] - reach) for at in offsets], np.int32)
    weight = np.zeros((len(offsets), reach, lanes), np.float32)
    for v, at in enumerate(offsets):
        for lane in range(lanes):
            i = left[at + lane] - start[v]
            weight[v, i, lane] += 1 - right[at + lane]
            if shape[3] > 1:
                weight[v, i + 1, lane] += right[at + lane]
    above, f = _between(rows, shape[2])
    below = above + 1 if shape[2] > 1 else above
    first = np.searchsorted(below, np.arange(shape[2] + 1)).astype(np.int32)
    return Tables(start, weight, first, f.astype(np.float32) if shape[2] > 1 else np.ones(len(rows), np.float32))


def _between(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(the pixel before, the share of the one behind it); behind a single pixel there is none."""
    places = np.clip(places, 0, size - 1)
    before = np.minimum(np.floor(places), max(size - 2, 0)).astype(np.int64)
    return before, places - before


def interpolate(t: Tables, out: tuple[int, int], shape: Shape, target: Target) -> tvm.tirx.PrimFunc:
    """(x of ``shape``, *tables, y (n, c, *out)), images in planes: pixels between pixels, linearly.

        for plane, for row r of x:
            line[r % 2] = sum over k of weight[v, k] * x[r, start[v] + k]   # for every vector v of columns
            for rows of y between rows r - 1 and r of x:
                y = (1 - f) line[(r - 1) % 2] + f line[r % 2]

    Each row is stretched once. A vector of columns reads few columns of x, since these are fewer: broadcasts and
    multiply-adds, and no gathers.
    """
    n, c, h, w = shape
    height, width = out
    size = pitch(height * width)
    lanes, offsets = spans(width, lanes_of(target, "float32"))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        images = T.arg("x", T.buffer((n, c, pitch(h * w)), "float32"))
        start = T.arg("start", T.buffer(t.start.shape, "int32"))
        weight = T.arg("weight", T.buffer(t.weight.shape, "float32"))
        first = T.arg("first", T.buffer(t.first.shape, "int32"))
        f = T.arg("f", T.buffer(t.f.shape, "float32"))
        larger = T.arg("y", T.buffer((n, c, size), "float32"))
        x = T.decl_buffer((n * c, pitch(h * w)), "float32", data=images.data)
        y = T.decl_buffer((n * c, size), "float32", data=larger.data)
        with parallel_loop(target)(0, n * c) as plane:
            lines = T.alloc_buffer((2, width), "float32")
            with T.serial(0, len(offsets) if h == 1 else 0) as v:  # there is no row before it
                T.buffer_store(lines, splat(0, lanes), [1, run(T.min(v * lanes, width - lanes), lanes)])
            _end(y, plane, height * width, "float32")
            with T.serial(0, h) as r:
                with T.serial(0, len(offsets)) as v:
                    pixel = T.Bind(r * w + start[v])
                    total = splat(x[plane, pixel], lanes) * weight[v, 0, run(0, lanes)]
                    for k in range(1, t.weight.shape[1]):
                        total = total + splat(x[plane, pixel + k], lanes) * weight[v, k, run(0, lanes)]
                    T.buffer_store(lines, total, [r % 2, run(T.min(v * lanes, width - lanes), lanes)])
                with T.serial(first[r], first[r + 1]) as row:
                    share = T.Bind(splat(f[row], lanes))
                    with T.serial(0, len(offsets)) as v:
                        at = T.Bind(T.min(v * lanes, width - lanes))
                        before, behind = (T.Bind(lines[line, run(at, lanes)]) for line in ((r + 1) % 2, r % 2))
                        value = before * (splat(1, lanes) - share) + behind * share
                        T.buffer_store(y, value, [plane, run(row * width + at, lanes)])
    return builder.get()
