"""The code of one register tile: sums of a few output channels at a few vectors of pixels, over all that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.emit.tiling import Tiling
from kerf.kernels.cpu.emit.weight_format import Rows, Weights
from kerf.kernels.cpu.layout import LINE
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.vector import every, prefetch, run, splat

MAX_UNROLLED_TAPS = 9  # larger kernels loop over their rows, to bound code size


@dataclass(frozen=True)
class Source:
    """An image's input planes: floats of ``buffer``, which is flat, from ``origin``."""

    buffer: Any
    origin: Any
    image: Any


@dataclass(frozen=True)
class Place:
    """Which pixels a tile has, and which panel of input channels is added."""

    vectors: list[tuple[Any, Any]]  # (input offset, output offset) of each
    ends: bool  # whether these end the plane
    panel: Any = 0
    scratch: Any = None  # where sums go instead of the output, at the input planes' pitch


@dataclass(frozen=True)
class Function:
    """What the tiles of one function have in common."""

    planes: Planes
    tiling: Tiling
    weights: Weights
    bias: Any
    out: Output
    panels: int  # that the input channels are swept in
    lanes: int  # of the configuration; the tiling's may be fewer
    by_element: bool = False  # whether instructions multiply a vector by an element of another, as NEON's do
    ahead: bool = False  # whether the next input channel's pixels are fetched before their turn


class Tile:
    def __init__(self, function: Function, source: Source, place: Place, rows: Rows):
        self.f, self.source, self.place, self.rows = function, source, place, rows
        self.lanes, self.count = function.tiling.lanes, len(place.vectors)

    def emit(self) -> None:
        f, rows = self.f, self.rows.count
        rest = f.tiling.tail if self.place.ends else 0
        self.channel = T.Bind(self.rows.channel(f.weights))
        self.planes = [T.Bind(f.out.plane(self.source.image, self.channel + r)) for r in range(rows)]
        # a buffer each, or LLVM would keep them in memory as one
        self.tails = [T.alloc_buffer((rows,), "float32", scope="local", annotations=REGISTERS) for _ in range(rest)]
        self.acc = T.alloc_buffer((rows * self.count * self.lanes,), "float32", scope="local", annotations=REGISTERS)
        self.tail_at = f.planes.pixels - rest
        panel = self.place.panel
        _first_or_later(panel, f.panels, self._begin, self._resume)
        self._sum()
        _first_or_later(f.panels - 1 - panel, f.panels, self._finish, self._keep)

    def _at(self, r: int, v: int):
        return run((r * self.count + v) * self.lanes, self.lanes)

    def _begin(self) -> None:
        """Sums are the bias."""
        rows, bias = self.rows.count, self.f.bias
        for tail in self.tails:
            T.buffer_store(tail, bias[run(self.channel, rows)], [run(0, rows)])
        for r in range(rows):
            start = T.Bind(splat(bias[self.channel + r], self.lanes))
            for v in range(self.count):
                T.buffer_store(self.acc, start, [self._at(r, v)])

    def _resume(self) -> None:
        """Sums are those of the panels before, which the output holds."""
        y = self.f.out.y
        for i, tail in enumerate(self.tails):
            for r in range(self.rows.count):
                T.buffer_store(tail, y[self.planes[r] + self.tail_at + i], [r])
        for r in range(self.rows.count):
            for v, (_, out) in enumerate(self.place.vectors):
                T.buffer_store(self.acc, y[run(self.planes[r] + out, self.lanes)], [self._at(r, v)])

    def _keep(self) -> None:
        """Sums into the output, for the next panel."""
        y = self.f.out.y
        for r in range(self.rows.count):
            for v, (_, out) in enumerate(self.place.vectors):
                T.buffer_store(y, self.acc[self._at(r, v)], [run(self.planes[r] + out, self.lanes)])
            for i, tail in enumerate(self.tails):
                T.buffer_store(y, tail[r], [self.planes[r] + self.tail_at + i])

    def _finish(self) -> None:
        """Results into the output, through the epilogue, or sums into the scratch."""
        f, scratch = self.f, self.place.scratch
        for r in range(self.rows.count):
            f.out.turn_to(self.channel + r)
            if self.place.ends and f.tiling.blank and scratch is None:
                f.out.blank(self.planes[r], f.out.pitch - f.tiling.blank, f.lanes)
            if scratch is None and f.tiling.covers:
                vectors = [self.acc[self._at(r, v)] for v in range(self.count)]
                offsets = [v * self.lanes for v in range(self.count)]
                f.out.store_row(vectors, self.planes[r] + self.place.vectors[0][1], offsets, self.lanes)
            else:
                for v, (_, out) in enumerate(self.place.vectors):
                    self._store(self.acc[self._at(r, v)], self.lanes, r, out)
            for i, tail in enumerate(self.tails):
                self._store(tail[r], 1, r, self.tail_at, i)

    def _store(self, value, lanes: int, r: int, *offsets) -> None:
        """At the sum of the offsets in the plane of channel ``r``."""
        scratch = self.place.scratch
        at = self.planes[r] if scratch is None else r * self.f.planes.pixels
        for offset in offsets:
            at = at + offset
        if scratch is None:
            self.f.out.store(value, at, lanes)
        else:
            T.buffer_store(scratch, value, [run(at, lanes)])

    def _sum(self) -> None:
        planes = self.f.planes
        (kh, kw), taps = planes.p.kernel, planes.p.taps
        rows = self.rows
        met = self._met()
        for loop in self.f.weights.reductions(rows.block, self.place.panel, rows.first, rows.count):
            with loop as (channel_offset, w, later):
                # in 64 bits, as addresses are: LLVM does sums of 32 in vector registers, of which it then has too few
                base = T.Bind(T.cast(self.source.origin + channel_offset, "int64"))
                if self.f.ahead:
                    self._fetch(T.Bind(T.cast(self.source.origin + later(), "int64")))
                if taps <= MAX_UNROLLED_TAPS:
                    for row in range(kh):
                        self._where(met[row], partial(self._row, w, row, base))
                else:
                    with T.serial(0, kh) as row:
                        for col in range(kw):
                            self._multiply_add(w, row * kw + col, base, planes.tap(row, col))

    def _met(self) -> list:
        """Per row of the kernel whether it reads the image at all for this tile; None where that is not asked."""
        planes = self.f.planes
        if not self.f.tiling.skips:
            return [None] * planes.p.kernel[0]
        first, last = (T.Bind(self.place.vectors[i][1] // planes.p.out_width) for i in (0, -1))
        return [T.Bind(T.And(*planes.meets(row, first, last))) for row in range(planes.p.kernel[0])]

    def _where(self, condition, body: Callable) -> None:
        if condition is None:
            body()
        else:
            with T.If(condition), T.Then():
                body()

    def _row(self, w: Callable, row: int, base) -> None:
        """The taps of a row of the kernel."""
        for col in range(kw := self.f.planes.p.kernel[1]):
            self._multiply_add(w, row * kw + col, base, self.f.planes.tap(row, col))

    def _fetch(self, base) -> None:
        """Asks for what is read of the channel at float ``base``: channels with blocks follow no pattern that the CPU
        could know, and all their pixels of a tile are used at once.
        """
        planes, (kh, kw) = self.f.planes, self.f.planes.p.kernel
        runs: dict[int, list[int]] = {}  # taps of a row and phase
        for row, col in product(range(kh), range(kw)):
            runs.setdefault(row * kw + col % planes.phases[1], []).append(planes.tap(row, col))
        starts = [at for at, _ in self.place.vectors]
        size = self.lanes
        if not self.f.tiling.per_row:  # side by side
            starts, size = starts[:1], size * self.count
        for taps in runs.values():
            for i, at in enumerate(starts):
                ends = taps[-1] - taps[0] + size - 1 if i == len(starts) - 1 else 0
                for float_ in sorted({*range(0, ends, LINE), ends}):
                    prefetch(self.source.buffer[base + taps[0] + at + float_])

    def _multiply_add(self, w: Callable, tap, base, offset) -> None:
        """One tap of one input channel, whose plane begins at float ``base``."""
        src, rows, lanes, acc = self.source.buffer, self.rows.count, self.lanes, self.acc
        inputs = [T.cast(at, "int64") for at, _ in self.place.vectors]
        for i, tail in enumerate(self.tails):
            pixel = T.Bind(splat(src[base + offset + self.f.planes.pixels - len(self.tails) + i], rows))
            T.buffer_store(tail, tail[run(0, rows)] + w(tap, run(0, rows)) * pixel, [run(0, rows)])
        ws = self._weights(w, tap)
        # the smaller side is held in registers, the other streams through one
        if self.count < rows:
            xs = [T.Bind(src[run(base + offset + i, lanes)]) for i in inputs]
            for r, weight in enumerate(ws):
                wr = T.Bind(weight())
                for v in range(self.count):
                    T.buffer_store(acc, acc[self._at(r, v)] + wr * xs[v], [self._at(r, v)])
        else:
            held = [T.Bind(weight()) for weight in ws]
            for v, i in enumerate(inputs):
                xv = T.Bind(src[run(base + offset + i, lanes)])
                for r in range(rows):
                    T.buffer_store(acc, acc[self._at(r, v)] + held[r] * xv, [self._at(r, v)])

    def _weights(self, w: Callable, tap) -> list[Callable]:
        """What makes the vector of each row's weight: broadcast loads, or elements of one load of all."""
        rows, lanes = self.rows.count, self.lanes
        if not self.f.by_element or rows == 1 or lanes == 1:
            return [partial(lambda r: splat(w(tap, r), lanes), r) for r in range(rows)]
        loaded = T.Bind(w(tap, run(0, rows)))
        return [partial(lambda r: splat(every(loaded, r, 1, 1), lanes), r) for r in range(rows)]


def _first_or_later(step, steps: int, first: Callable, later: Callable) -> None:
    """``first`` where step is 0, else ``later``; no branch where there is one step."""
    if steps == 1:
        first()
        return
    with T.If(step == 0):
        with T.Then():
            first()
        with T.Else():
            later()
