"""Sums on their way out: through shared memory into whole vectors of a channel, then bias, residual, activation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cuda.emit.fragments import COLUMNS, LANES, ROWS, staged_half, staged_row
from kerf.kernels.cuda.emit.stage import threads_beside
from kerf.kernels.cuda.layout import VECTOR
from kerf.kernels.epilogue import activate
from kerf.kernels.problem import Problem
from kerf.kernels.vector import run, splat


def lanes(dtype: str) -> int:
    """Numbers in 16 bytes."""
    return 8 if dtype == "float16" else 4


def as_float(value, count: int):
    return T.cast(value, "float32" if count == 1 else f"float32x{count}")


def ptx(text: str, *operands) -> None:
    """One PTX instruction."""
    T.evaluate(script.ptx[text](*operands))


def resident(threads: int, registers: int, most: int = 1024):
    """Context, inside the threads: how many threads, at most ``most``, a multiprocessor is to hold (threads_beside)."""
    return T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", max(min(threads_beside(registers), most) // threads, 1))


def load(to, first: int, source, index, valid, count: int, fill: float = 0.0) -> None:
    """to[first ...] = ``count`` numbers of ``source`` from ``index`` as float32; ``fill`` where not ``valid``."""
    step = min(count, 4)
    for k in range(0, count, step):
        place = run(first + k, step)
        with T.If(valid > 0):
            with T.Then():
                T.buffer_store(to, as_float(source[run(index + k, step)], step), [place])
            with T.Else():
                T.buffer_store(to, splat(fill, step), [place])


def emit_store(p: Problem, y, residual, channel, pixel, values: list, bias) -> None:
    """y[channel, pixel ...] = activation(values + bias + residual): ``values`` are two vectors of 4 float32."""
    wide = lanes(y.dtype)
    if residual is not None:
        held = T.alloc_buffer((VECTOR,), y.dtype, scope="local")
        for k in range(0, VECTOR, wide):
            T.buffer_store(held, residual[channel, T.ramp(pixel + k, 1, wide)], [T.ramp(k, 1, wide)])
    out = T.alloc_buffer((VECTOR,), y.dtype, scope="local")
    for k, value in zip(range(0, VECTOR, 4), values, strict=True):
        value = value + splat(bias, 4)
        if residual is not None:
            value = value + as_float(held[T.ramp(k, 1, 4)], 4)
        T.buffer_store(out, T.cast(activate(p.epilogue, value, 4), f"{y.dtype}x4"), [T.ramp(k, 1, 4)])
    for k in range(0, VECTOR, wide):
        T.buffer_store(y, out[T.ramp(k, 1, wide)], [channel, T.ramp(pixel + k, 1, wide)])


class Staging:
    """A warp's 16 filters x ``pixels`` sums in shared memory, between the registers of mma.sync and vectors of y.

    A row holds its even groups of 4 pixels, then the odd ones: lanes that store pairs, and lanes that load 4 of their
    vector's 8, meet in different banks.
    """

    def __init__(self, pixels: int, floats, begin: int, warp, lane, slices: int = 1, slice_warps: int = 0):
        """``floats``: shared memory as float32; from ``begin`` on ``warp`` has its own part of it. The sums of the
        ``slices`` warps that are ``slice_warps`` apart are parts of the same ones.
        """
        self.pixels, self.floats, self.lane, self.slices = pixels, floats, lane, slices
        size = ROWS * staged_row(pixels)
        mine = T.Bind(begin + warp * size)
        self.origin = T.Bind(begin + warp % slice_warps * size) if slices > 1 else mine
        self.slice, self.apart = warp // slice_warps if slices > 1 else 0, slice_warps * size
        row, pair = lane // 4, lane % 4
        self.place = T.Bind(mine + row * staged_row(pixels) + pair // 2 * staged_half(pixels) + pair % 2 * 2)

    # By instructions that TVM does not look into: it would have all threads wait where a warp's own sums are staged.

    def store(self, sums, first: int) -> None:
        """The accumulators of 16 filters, from register ``first`` on."""
        for n in range(self.pixels // COLUMNS):
            for half in range(2):
                at = first + 4 * n + 2 * half
                to = self.floats.ptr_to([self.place + 8 * half * staged_row(self.pixels) + 4 * n])
                ptx("st.shared.v2.f32", to, sums[at], sums[at + 1])

    def wait(self) -> None:
        """Until what was stored may be loaded, or what was loaded overwritten."""
        T.evaluate(script.cuda.cta_sync() if self.slices > 1 else script.cuda.warp_sync())

    def load(self, row, column) -> list:
        """8 pixels from ``column`` on, as two vectors of 4 float32."""
        at = T.Bind(self.origin + row * staged_row(self.pixels) + column // 2)
        held = T.alloc_buffer((VECTOR * self.slices,), "float32", scope="local")
        for part in range(2 * self.slices):
            source = self.floats.ptr_to([at + part // 2 * self.apart + part % 2 * staged_half(self.pixels)])
            ptx("ld.shared.v4.f32", *(held[4 * part + i] for i in range(4)), source)
        found = [held[T.ramp(4 * k, 1, 4)] for k in range(2)]
        for part in range(2, 2 * self.slices):
            found[part % 2] = found[part % 2] + held[T.ramp(4 * part, 1, 4)]
        return found

    @contextmanager
    def vectors(self) -> Iterator[tuple]:
        """Context of a loop over this lane's (row, first pixel) of the 16 x pixels."""
        across = self.pixels // VECTOR
        items, at_once = ROWS * across, LANES * self.slices
        with T.serial(0, -(-items // at_once)) as i:
            item = T.Bind(i * at_once + self.slice * LANES + self.lane)
            with T.If(True if items % at_once == 0 else item < items), T.Then():
                yield T.Bind(item // across), T.Bind(item % across * VECTOR)
