"""Direct k x k convolution in which every load is one aligned vector and serves every kernel row that needs it.

    for strip of output rows:
        for each input channel: a copy of its rows per kernel column, shifted by it, so that no tap is off a vector
        for block row b, for tile of ``high`` output rows x one vector of pixels:
            acc[rows, high, lanes] = bias                                   # registers
            for (input channel, weights) of block row b:                    # the weight format's loop: dense or BSR
                for kernel column q: w = the column's weights, broadcast    # registers
                    for input row i of the tile: x = one load
                        acc[r, t] += w[k, r] * x for every output row t and kernel row k that meet at i
            y = activation(acc + residual)

A 3 x 3 kernel over ``high`` = 4 rows loads 18 vectors for 36 uses. The direct convolution (direct.py) loads 36,
three quarters of them across two cache lines, which costs a core with 64-byte vectors a fifth of its speed.

A vector of ``lanes`` holds ``groups`` runs of pixels, one from each of as many bands of the image: 28 pixels are no
multiple of 16, but seven runs of four are, one run from each quarter of a 28 x 28 image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.direct import parameters
from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.sharing import busiest, in_parts, in_turn, splits, sub_rows, waits
from kerf.kernels.cpu.emit.tiling import VISIT_CYCLES
from kerf.kernels.cpu.emit.weight_format import Rows, Weights
from kerf.kernels.cpu.machine import Machine, machine_of
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import even_tiles, every, run, splat

STRIP_SHARE = 15 / 32  # of the second-level cache, for copies made at a time
MOST_COPIES = 2048  # vectors of a row that are copied, all written out: rows that are longer are left to direct.py


@dataclass(frozen=True)
class Columns:
    """Geometry of the copies; ``strip`` output rows of every band at a time."""

    p: Problem
    lanes: int
    groups: int
    strip: int

    @property
    def run(self) -> int:
        """Pixels of one band in a vector."""
        return self.lanes // self.groups

    @property
    def band(self) -> int:
        """Output rows of a band."""
        return -(-self.p.out_height // self.groups)

    @property
    def vectors(self) -> int:
        """Vectors in a row of all bands."""
        return -(-self.p.out_width // self.run)

    @property
    def rows(self) -> int:
        """Input rows that a strip of a band reads."""
        return (self.strip - 1) * self.p.stride[0] + (self.p.kernel[0] - 1) * self.p.dilation[0] + 1

    @property
    def channel(self) -> int:
        """Floats of a channel's copies: (vector, kernel column, row, lane)."""
        return self.vectors * self.p.kernel[1] * self.rows * self.lanes

    def line(self, vector, column: int, row):
        return ((vector * self.p.kernel[1] + column) * self.rows + row) * self.lanes


@dataclass(frozen=True)
class Tile:
    """``high`` rows, from row ``at`` of the strip that begins with row ``row0``, of one vector.

    ``pixels`` of it exist in every band.
    """

    image: Any
    row0: Any
    at: Any
    high: int
    vector: Any
    pixels: int


def configs(p: Problem, target: Target, heights: tuple[int, ...], inputs: float) -> list[tuple[float, Config]]:
    """(estimated cycles, configuration), as direct.py has them; none for 1 x 1 kernels, groups, few registers."""
    machine = machine_of(target)
    lanes, registers = machine.lanes[0], machine.registers
    if p.taps == 1 or p.groups > 1 or registers < 32:
        return []
    found: dict[tuple, tuple[float, Config]] = {}
    for rows, groups in product(heights, _groups(p, lanes)):
        whole = Columns(p, lanes, groups, -(-p.out_height // groups))
        if groups * whole.vectors * p.kernel[1] > MOST_COPIES:
            continue
        fit = min(8, (registers - 2 - p.kernel[0] * rows) // rows)
        for high, strip in _strips(whole, [h for h in (fit, fit - 1) if h >= 2], machine):
            g = replace(whole, strip=strip)
            c: Config = {"lanes": g.lanes, "rows": rows, "pixels": "columns", "high": high, "groups": groups}
            c |= {"strip": strip, "panel": p.in_channels}
            for split in splits(target, -(-g.band // strip)):
                cost = p.batch * (_cycles(p, g, {**c, **split}, inputs) + waits(p, split))
                found.setdefault((rows, groups, high, strip, *split.values()), (cost, {**c, **split}))
    return list(found.values())


def _strips(whole: Columns, heights: list[int], machine: Machine) -> Iterator[tuple[int, int]]:
    """(output rows of a tile, of a strip) worth trying."""
    for fits in heights:
        high = fits
        for strip in {min(s, whole.band) for s in (high, _strip(whole, high, machine))}:
            high = min(high, strip)
            yield high, strip


def _strip(whole: Columns, high: int, machine: Machine) -> int:
    """The most tiles of ``high`` rows whose copies stay in the second-level cache."""
    room = machine.l2_floats * STRIP_SHARE
    fits = [s for s in range(high, whole.band + high, high) if _floats(replace(whole, strip=s)) <= room]
    return max(fits, default=high)


def _floats(g: Columns) -> int:
    return g.p.in_channels * g.channel


def _groups(p: Problem, lanes: int) -> list[int]:
    """The numbers of bands that waste least, at most two of them."""
    waste = {}
    for groups in (1, 2, 4, 8):
        c = Columns(p, lanes, groups, 1)
        if groups <= lanes // 2 and (groups - 1) * c.band < p.out_height:
            waste[groups] = groups * c.band * c.vectors * c.run
    return sorted(waste, key=lambda g: (waste[g], g))[:2]


def _cycles(p: Problem, g: Columns, c: Config, inputs: float) -> float:
    runs = [(n, size) for _, n, size in even_tiles(g.band, g.strip)]
    strips = sum(n for n, _ in runs)
    each = 2.5 if p.stride[1] == 1 else 5
    copies = p.in_channels * strips * g.rows * p.kernel[1] * g.vectors * g.groups * each
    rows, whole = c["rows"], p.n or p.out_channels
    sweeps = -(-p.out_channels // whole) * -(-whole // rows)
    total = 0.0
    for _, tiles, high in even_tiles(g.band, c["high"]):
        loads = p.kernel[1] * len(_meetings(p, high))
        step = max(p.taps * rows * high / 2, (loads + p.taps * rows) / 2) + 1.5 + 0.3 * loads
        total += tiles * g.vectors * (VISIT_CYCLES + (1 + g.groups) * rows * high + inputs * step)
    share = busiest(p, c, runs)
    return copies * (share if c.get("split") == "pixels" else 1) + sweeps * total * share


def _meetings(p: Problem, high: int) -> dict[int, list[tuple[int, int]]]:
    """Input row of a tile -> the (output row, kernel row) that meet there."""
    found: dict[int, list[tuple[int, int]]] = {}
    for t in range(high):
        for k in range(p.kernel[0]):
            found.setdefault(t * p.stride[0] + k * p.dilation[0], []).append((t, k))
    return dict(sorted(found.items()))


def geometry(p: Problem, c: Config) -> Columns:
    return Columns(p, c["lanes"], c["groups"], c["strip"])


def prim_func(p: Problem, c: Config, target: Target, weights: Weights) -> tvm.tirx.PrimFunc:
    """The kernel: (x, *weights, bias, [residual], y), images as in kerf.kernels.cpu.layout."""
    g = geometry(p, c)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, bias, out = parameters(p, weights)
        emit = _Emit(g, c, weights, bias, out)
        with T.serial(0, p.batch) as image:
            if emit.out.pitch > p.out_height * p.out_width:
                emit.out.blank_lines(image, g.lanes)
            in_parts(weights, p.out_channels, c.get("split") == "pixels", partial(emit.strips, x, image))
    return builder.get()


class _Emit:
    """The loops of one function under construction."""

    def __init__(self, g: Columns, c: Config, weights: Weights, bias, out: Output):
        self.g, self.p, self.c = g, g.p, c
        self.weights, self.bias, self.out = weights, bias, out

    def strips(self, x, image, turn: tuple, rows: Callable) -> None:
        """A thread's share. It makes its own copies: what another core has written is slow to read."""
        g = self.g
        copies = T.alloc_buffer((self.p.in_channels * g.channel,), "float32")
        before = 0
        for first, strips, size in even_tiles(g.band, g.strip):
            loop, strip = in_turn(turn, before, strips, -(-g.band // g.strip))
            before += strips
            with loop as s:
                row0 = T.Bind(first + strip(s) * size)
                with T.serial(0, self.p.in_channels) as channel:
                    self.copy(x, copies, image, channel, row0, size)
                self.strip(copies, image, row0, size, rows)

    def copy(self, x, copies, image, channel, row0, size: int) -> None:
        """The rows that output rows row0 .. row0+size-1 of every band read, shifted for every kernel column."""
        g, p = self.g, self.p
        rows = Columns(p, g.lanes, g.groups, size).rows
        for band in range(g.groups):
            with T.serial(0, rows) as i:
                row = T.Bind((band * g.band + row0) * p.stride[0] + i - p.padding[0])
                with T.If(T.And(row >= 0, row < p.height)), T.Then():
                    for to, column in self._shifted(channel, band, i):
                        self._copy_run(x, copies, to, image, channel, row * p.width, column)
                with T.If(T.Or(row < 0, row >= p.height)), T.Then():
                    for to, _ in self._shifted(channel, band, i):
                        T.buffer_store(copies, splat(0, g.run), [run(to, g.run)])

    def _shifted(self, channel, band: int, row) -> Iterator[tuple[Any, int]]:
        """(where a run of a band's row goes, the image's column that it begins with), by vector and kernel column."""
        g, p = self.g, self.p
        for v, q in product(range(g.vectors), range(p.kernel[1])):
            to = channel * g.channel + g.line(v, q, row) + band * g.run
            yield to, v * g.run * p.stride[1] + q * p.dilation[1] - p.padding[1]

    def _copy_run(self, x, copies, to, image, channel, row_at, column: int) -> None:
        """Pixels column, column + stride ... of a row; zeros where there are none."""
        lanes, step, width = self.g.run, self.p.stride[1], self.p.width
        real = [i for i in range(lanes) if 0 <= column + i * step < width]
        if len(real) < lanes:
            T.buffer_store(copies, splat(0, lanes), [run(to, lanes)])
        for i, n in _powers(real[0], len(real)) if real else []:
            at = column + i * step
            shift = max(0, at + n * step - width)  # start earlier than read past the row
            if step == 1:
                T.buffer_store(copies, x[image, channel, run(row_at + at, n)], [run(to + i, n)])
            elif n > 1 and shift < step and at >= shift:
                pixels = x[image, channel, run(row_at + at - shift, n * step)]
                T.buffer_store(copies, every(pixels, shift, step, n), [run(to + i, n)])
            else:
                for k in range(n):
                    T.buffer_store(copies, x[image, channel, row_at + at + k * step], [to + i + k])

    def strip(self, copies, image, row0, size: int, block_rows: Callable) -> None:
        """Output rows row0 .. row0+size-1 of every band."""
        rest = self.p.out_width % self.g.run

        def tiles(rows: Rows) -> None:
            for first, count, high in even_tiles(size, self.c["high"]):
                with T.serial(0, count) as t:
                    at = T.Bind(first + t * high)
                    with T.serial(0, self.g.vectors - bool(rest)) as v:
                        self._tile(copies, rows, Tile(image, row0, at, high, v, self.g.run))
                    if rest:
                        self._tile(copies, rows, Tile(image, row0, at, high, self.g.vectors - 1, rest))

        block_rows(lambda b, height: sub_rows(b, height, self.c["rows"], tiles))

    def _tile(self, copies, rows: Rows, tile: Tile) -> None:
        """Sums of the channels ``rows``, in registers, and their results."""
        lanes, count = self.g.lanes, rows.count
        acc = T.alloc_buffer((count * tile.high * lanes,), "float32", scope="local", annotations=REGISTERS)
        channel = T.Bind(rows.channel(self.weights))
        for r in range(count):
            start = T.Bind(splat(self.bias[channel + r], lanes))
            for t in range(tile.high):
                T.buffer_store(acc, start, [run((r * tile.high + t) * lanes, lanes)])
        self._sum(copies, acc, rows, tile)
        for r in range(count):
            plane = T.Bind(self.out.plane(tile.image, channel + r))
            for t in range(tile.high):
                self._store_row(acc, (r * tile.high + t) * lanes, plane, t, tile)

    def _sum(self, copies, acc, rows: Rows, tile: Tile) -> None:
        g, p, lanes = self.g, self.p, self.g.lanes
        (loop,) = self.weights.reductions(rows.block, 0, rows.first, rows.count)
        with loop as (origin, w, _):
            base = T.Bind(origin + tile.at * p.stride[0] * lanes)
            for q in range(p.kernel[1]):
                ws = [
                    [T.Bind(splat(w(k * p.kernel[1] + q, r), lanes)) for r in range(rows.count)]
                    for k in range(p.kernel[0])
                ]
                for i, meetings in _meetings(p, tile.high).items():
                    x = T.Bind(copies[run(base + g.line(tile.vector, q, i), lanes)])
                    for (t, k), r in product(meetings, range(rows.count)):
                        to = run((r * tile.high + t) * lanes, lanes)
                        T.buffer_store(acc, acc[to] + ws[k][r] * x, [to])

    def _store_row(self, acc, lane: int, plane, t: int, tile: Tile) -> None:
        """Row ``t`` of the tile, of all bands; the last band may end before it."""
        g, p = self.g, self.p
        for band in range(g.groups):
            row = T.Bind(band * g.band + tile.row0 + tile.at + t)
            if (band + 1) * g.band <= p.out_height:
                self._store(acc, lane + band * g.run, plane, row, tile.vector, tile.pixels)
            else:
                with T.If(row < p.out_height), T.Then():
                    self._store(acc, lane + band * g.run, plane, row, tile.vector, tile.pixels)

    def _store(self, acc, lane: int, plane, row, v, pixels: int) -> None:
        for i, n in _powers(0, pixels):
            self.out.store(acc[run(lane + i, n)], plane + row * self.p.out_width + v * self.g.run + i, n)


def _powers(first: int, count: int) -> list[tuple[int, int]]:
    """(start, size) of runs of 1, 2, 4 ... that cover ``count`` entries from ``first``."""
    found = []
    while count:
        size = 1 << (count.bit_length() - 1)
        found.append((first, size))
        first, count = first + size, count - size
    return found
