"""Pixels that go to other places: planes in another order, or fewer, and images enlarged by repeating pixels."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.layout import LINE, pitch
from kerf.kernels.cpu.machine import lanes_of, parallel_loop
from kerf.kernels.form import Order, Shape
from kerf.kernels.vector import run, spans


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
    width, wide = w * across, pitch(h * down * w * across)
    lanes, offsets = spans(w, lanes_of(target, dtype))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        images = T.arg("x", T.buffer((n, c, pitch(h * w)), dtype))
        larger = T.arg("y", T.buffer((n, c, wide), dtype))
        x = T.decl_buffer((n * c, pitch(h * w)), dtype, data=images.data)
        y = T.decl_buffer((n * c, wide), dtype, data=larger.data)
        with parallel_loop(target)(0, n * c) as plane:
            for k in range(wide - LINE, wide) if wide > h * down * width else ():
                T.buffer_store(y, tirx.const(0, dtype), [plane, k])
            with T.serial(0, h) as row:
                for at in offsets:
                    pixels = T.Bind(x[plane, run(row * w + at, lanes)])
                    for part in range(across):  # of the vectors that this one becomes
                        value = pixels if across == 1 else _repeated(pixels, part * lanes, across, lanes)
                        for line in range(down):
                            to = (row * down + line) * width + at * across + part * lanes
                            T.buffer_store(y, value, [plane, run(to, lanes)])
    return builder.get()


def _repeated(vector, first: int, times: int, lanes: int):
    """Entries from ``first`` on of a vector whose lanes are each repeated."""
    if lanes == 1:
        return vector
    return tirx.Shuffle([vector], [T.int32((first + i) // times) for i in range(lanes)])
