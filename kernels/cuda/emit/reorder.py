"""The ways of a network's images into rows (kerf.kernels.cuda.layout) and of its results back to NCHW."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cuda.emit.fragments import LANES
from kerf.kernels.cuda.emit.store import as_float
from kerf.kernels.cuda.layout import images_at_once, rows_of

NUMBERS, THREADS = 1024, 256  # of a CTA, which transposes pixels x images through shared memory

Shape = tuple[int, int, int, int]


def to_rows(shape: Shape, dtype: str) -> tvm.tirx.PrimFunc:
    """(x NCHW float32, y): images of ``shape`` into rows."""
    n, c, h, w = shape
    rows = rows_of(shape)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(shape, "float32"))
        y = T.arg("y", T.buffer(rows, dtype))
        images = T.decl_buffer((prod(shape),), "float32", data=x.data)
        with _tiles(shape) as (channel, tile, thread, held):
            with _places(shape, tile, thread, along_pixels=True) as (image, pixel, own):
                value = images[(image * c + channel) * (h * w) + pixel]
                T.buffer_store(held, value, [own])
            with _places(shape, tile, thread, along_pixels=False) as (image, pixel, own):
                value = T.cast(held[own], dtype)
                T.buffer_store(y, value, [channel, pixel * n + image])
            behind = n * h * w + thread  # what fills the row up is finite
            with T.If(tile == 0), T.Then(), T.If(behind < rows[1]), T.Then():
                T.buffer_store(y, T.cast(T.float32(0), dtype), [channel, behind])
    return builder.get()


def from_rows(shape: Shape, dtype: str) -> tvm.tirx.PrimFunc:
    """(x, y NCHW float32): rows to images of ``shape``."""
    n, c, h, w = shape
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(rows_of(shape), dtype))
        y = T.arg("y", T.buffer(shape, "float32"))
        images = T.decl_buffer((prod(shape),), "float32", data=y.data)
        with _tiles(shape) as (channel, tile, thread, held):
            with _places(shape, tile, thread, along_pixels=False) as (image, pixel, own):
                T.buffer_store(held, as_float(x[channel, pixel * n + image], 1), [own])
            with _places(shape, tile, thread, along_pixels=True) as (image, pixel, own):
                place = (image * c + channel) * (h * w) + pixel
                T.buffer_store(images, held[own], [place])
    return builder.get()


def _sizes(shape: Shape) -> tuple[int, int, int]:
    """(images, pixels) of a tile, and the numbers from one image's pixels to the next one's in shared memory: 32 lanes
    that go along images reach 32 / images pixels of each, which are to lie in different banks.
    """
    images = images_at_once(shape[0])
    pixels = NUMBERS // images
    return images, pixels, pixels + LANES // images


@contextmanager
def _tiles(shape: Shape) -> Iterator[tuple]:
    """A CTA for every channel and tile of pixels and images; yields (channel, tile, thread, shared memory). TVM has
    threads wait between its uses.
    """
    n, c, h, w = shape
    images, pixels, pitch = _sizes(shape)
    with (
        T.launch_thread("blockIdx.x", -(-(h * w) // pixels) * -(-n // images)) as tile,
        T.launch_thread("blockIdx.y", c) as channel,
        T.launch_thread("threadIdx.x", THREADS) as thread,
    ):
        yield channel, tile, thread, T.alloc_buffer((images * pitch,), "float32", scope="shared")


@contextmanager
def _places(shape: Shape, tile, thread, along_pixels: bool) -> Iterator[tuple]:
    """Context of a loop over this thread's (image, pixel, where the tile holds them), neighbours along either."""
    n, _, h, w = shape
    images, pixels, pitch = _sizes(shape)
    across = -(-n // images)
    with T.unroll(0, NUMBERS // THREADS) as turn:
        item = turn * THREADS + thread
        own = (item // pixels, item % pixels) if along_pixels else (item % images, item // images)
        image = T.Bind(tile % across * images + own[0])
        pixel = T.Bind(tile // across * pixels + own[1])
        with T.If(image < n), T.Then(), T.If(pixel < h * w), T.Then():
            yield image, pixel, own[0] * pitch + own[1]
