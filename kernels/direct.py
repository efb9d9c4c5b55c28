"""Direct convolution with a register tile of output channels x vectors of pixels, over any weight format.

    for tile of pixels, for block row b:               # either loop may be the outer one: Config "order"
        acc[rows, vectors, lanes] = 0                  # registers
        for (input channel, weights) of block row b:   # the weight format's loop: dense or BSR
            for tap: acc[r, v, :] += w[tap, r] * x[channel, pixel v + tap]
        y = activation(acc + bias + residual)

Pixels are flat positions over the pitch of ``Planes``. Config "pixels" says how they are cut into vectors: "flat" runs
over row ends (cheapest when a row is no multiple of the vector; the few columns past a row's end are computed and
dropped on the way from scratch to the output), "tail" does so too but sums the one to four pixels that are left over
in vectors along the block's rows (49 pixels are 3 vectors of 16 and one pixel: a fourth vector would waste a quarter),
"rows" keeps every vector inside one row and stores at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kernels.epilogue import ACTIVATION
from kernels.isa import parallel_loop, vector_unit
from kernels.planes import Planes
from kernels.problem import Problem
from kernels.vector import even_tiles, run, spans, splat

# Keeps a local buffer on the stack, where LLVM turns it into registers; see kernels.lowering.
REGISTERS = {"disable_lower_builtin": True}
MAX_TAIL = 4  # pixels summed along rows; more are cheaper as one more vector of pixels
MAX_UNROLLED_TAPS = 9  # larger kernels loop over their rows, to bound code size


class Weights(Protocol):
    """A weight format inside the function being built."""

    height: int  # output channels of a block row
    rows: int  # full block rows; out_channels - rows * height channels make one more, short

    def declare(self) -> None:
        """Add the format's arrays to the function's parameters."""

    def reduction(self, block) -> Iterator[tuple[object, Callable]]:
        """Context: loop over the block row's input channels; yields (channel's float offset, w(tap, row or ramp))."""


@dataclass(frozen=True)
class Tiling:
    """Cut of the output pixels into vectors, and of the vectors into tiles of nearly equal size."""

    lanes: int
    count: int  # vectors in all
    per_row: int  # vectors in an output row; 0 = flat
    tiles: tuple[tuple[int, int, int], ...]  # (first vector, tiles, vectors per tile)
    tail: int  # pixels after the last vector, summed with the last tile
    planes: Planes

    @classmethod
    def of(cls, planes: Planes, pixels: str, lanes: int, vectors: int) -> Tiling:
        tail = planes.pixels % lanes if pixels == "tail" else 0
        if pixels in ("flat", "tail"):
            lanes, offsets = spans(planes.pixels - tail, lanes)
            count, per_row = len(offsets), 0
        else:
            lanes, offsets = spans(planes.p.out_width, lanes)
            count, per_row = len(offsets) * planes.p.out_height, len(offsets)
        tiles = even_tiles(count, vectors)
        if tail and tiles[-1][1] > 1:  # the last tile has the tail, so it gets a loop of its own
            first, n, size = tiles.pop()
            tiles += [(first, n - 1, size), (first + (n - 1) * size, 1, size)]
        return cls(lanes, count, per_row, tuple(tiles), tail, planes)

    def place(self, i) -> tuple:
        """(input offset, output offset) in floats of vector i (TIR expression). Overlaps instead of overrunning."""
        p = self.planes.p
        if not self.per_row:
            at = T.min(i * self.lanes, self.planes.pixels - self.tail - self.lanes)
            return at, at
        row, x = i // self.per_row, T.min(i % self.per_row * self.lanes, p.out_width - self.lanes)
        return row * self.planes.pitch + x, row * p.out_width + x

    def rest(self, first: int, vectors: int) -> int:
        """Tail pixels of the tile of ``vectors`` from vector ``first``: those of the last tile."""
        return self.tail if first + vectors == self.count else 0

    @property
    def needs_scratch(self) -> bool:
        return not self.per_row and self.planes.pitch != self.planes.p.out_width


def configs(p: Problem, target: Target, heights: tuple[int, ...]) -> list[dict]:
    """Configurations for block rows cut into sub-rows of ``heights`` channels, the most promising first."""
    planes = Planes.of(p)
    found: dict[tuple, tuple[float, dict]] = {}
    widths, registers = vector_unit(target)
    for wide in widths:
        for height in heights:
            # accumulators, the held operands (the smaller side of the tile) and one streaming through
            fit = next(v for v in range(registers, 0, -1) if height * v + min(height, v) < registers or v == 1)
            for vectors in {fit, max(fit - 1, 1)}:
                rest = planes.pixels % wide
                tail = ("tail",) if 0 < rest <= MAX_TAIL and planes.pixels > wide else ()
                for pixels in (*tail, "flat", "rows"):
                    tiling = Tiling.of(planes, pixels, wide, vectors)
                    for order in ("blocks",) if tiling.needs_scratch else ("tiles", "blocks"):
                        c = {"lanes": wide, "rows": height, "vectors": vectors, "pixels": pixels, "order": order}
                        key = (tiling.lanes, height, tiling.tiles, tiling.per_row, tiling.tail, order)
                        found.setdefault(key, (_cost(p, tiling, height, order), c))
    return [c for _, c in sorted(found.values(), key=lambda f: f[0])]


def _cost(p: Problem, tiling: Tiling, height: int, order: str) -> float:
    """Estimated cycles per 16 useful multiply-adds. Only ranks configurations; measured ones are never estimated.

    Counts multiply-adds in units of 16 lanes, about 2.5 cycles of loop and index for every input channel of a tile
    (fitted on 7x7 and 28x28 planes, Zen 4), and the passes over the output.
    """
    steps = sum(n * (height * vectors * tiling.lanes / 16 + 2.5 / p.taps) for _, n, vectors in tiling.tiles)
    steps += tiling.tail * height / 4  # a vector of rows fills a quarter or half of a register
    cost = steps / (p.out_height * p.out_width * height / 16)
    whole = p.block or p.out_channels  # rows of weights that are cut into pieces of ``height``
    cost *= -(-whole // height) * height / whole
    cost += (3 if tiling.needs_scratch else 1) / (p.taps * p.in_channels // p.groups)
    one_tile = tiling.tiles[0][1] == len(tiling.tiles) == 1
    return cost * (1 if (order == "tiles") == one_tile else 1.01)


def prim_func(p: Problem, c: dict, target: Target, weights: Weights) -> tvm.tirx.PrimFunc:
    """The kernel: (x, *weights, bias, [residual], y), all NCHW float32."""
    planes = Planes.of(p)
    tiling = Tiling.of(planes, c["pixels"], c["lanes"], c["vectors"])
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(p.in_shape, "float32"))
        weights.declare()
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(p.out_shape, "float32")) if p.residual else None
        y = T.arg("y", T.buffer(p.out_shape, "float32"))
        emit = _Emit(p, c, target, planes, tiling, weights, bias, y, residual)
        if planes.copied:
            padded = T.alloc_buffer((planes.scratch(p.in_channels),), "float32")
            with T.serial(0, p.batch) as image:
                planes.emit_copy(x, padded, image, 0, p.in_channels, c["lanes"], parallel_loop(target))
                emit.image(padded, 0, image)
        else:
            flat = T.decl_buffer((p.batch * p.in_channels * planes.channel,), "float32", data=x.data)
            with T.serial(0, p.batch) as image:
                emit.image(flat, image * (p.in_channels * planes.channel), image)
    return builder.get()


class _Emit:
    """The loops of one function under construction."""

    def __init__(self, p, c, target, planes, tiling, weights, bias, y, residual):
        self.parallel = parallel_loop(target)
        self.p, self.c, self.planes, self.tiling, self.weights = p, c, planes, tiling, weights
        self.bias = bias
        self.image_out = p.out_channels * p.out_height * p.out_width
        size = (p.batch * self.image_out,)
        self.y = T.decl_buffer(size, "float32", data=y.data)
        self.residual = T.decl_buffer(size, "float32", data=residual.data) if p.residual else None

    def image(self, src, origin, image) -> None:
        """All outputs of one image whose input planes start at ``origin`` of ``src``."""
        full, short = self.weights.rows, self.p.out_channels - self.weights.rows * self.weights.height
        if self.c["order"] == "tiles":
            for first, tiles, vectors in self.tiling.tiles:
                with self.parallel(0, tiles) as t:
                    where = [self._bind(first + t * vectors + v) for v in range(vectors)]
                    rest = self.tiling.rest(first, vectors)
                    with T.serial(0, full) as b:
                        self._block(src, origin, image, b, self.weights.height, where, rest)
                    if short:
                        self._block(src, origin, image, full, short, where, rest)
            return
        with self.parallel(0, full) as b:
            self._block_over_tiles(src, origin, image, b, self.weights.height)
        if short:
            self._block_over_tiles(src, origin, image, full, short)

    def _bind(self, i):
        return tuple(T.Bind(at) for at in self.tiling.place(i))

    def _sub_rows(self, height: int) -> list[tuple[int, int]]:
        """(first row, rows) of the sub-rows that share a block row's indices."""
        step = self.c["rows"]
        return [(r, min(step, height - r)) for r in range(0, height, step)]

    def _block(self, src, origin, image, b, height, where, rest) -> None:
        for first_row, rows in self._sub_rows(height):
            channel = b * self.weights.height + first_row
            acc, tail = self._accumulate(src, origin, b, first_row, rows, [i for i, _ in where], rest)
            for r in range(rows):
                base = image * self.image_out + (channel + r) * (self.p.out_height * self.p.out_width)
                for v, (_, out) in enumerate(where):
                    self._store(acc(r, v), channel + r, base + out, self.tiling.lanes)
                for i in range(rest):
                    self._store(tail(r, i), channel + r, base + self.planes.pixels - rest + i, 1)

    def _block_over_tiles(self, src, origin, image, b, height) -> None:
        lanes, needs_scratch = self.tiling.lanes, self.tiling.needs_scratch
        for first_row, rows in self._sub_rows(height):
            channel = b * self.weights.height + first_row
            scratch = T.alloc_buffer((rows * self.planes.pixels,), "float32") if needs_scratch else None
            for first, tiles, vectors in self.tiling.tiles:
                with T.serial(0, tiles) as t:
                    where = [self._bind(first + t * vectors + v) for v in range(vectors)]
                    rest = self.tiling.rest(first, vectors)
                    acc, tail = self._accumulate(src, origin, b, first_row, rows, [i for i, _ in where], rest)
                    for r in range(rows):
                        base = image * self.image_out + (channel + r) * (self.p.out_height * self.p.out_width)
                        for v, (_, out) in enumerate(where):
                            if needs_scratch:
                                T.buffer_store(scratch, acc(r, v), [run(r * self.planes.pixels + out, lanes)])
                            else:
                                self._store(acc(r, v), channel + r, base + out, lanes)
                        for i in range(rest):
                            at = self.planes.pixels - rest + i
                            if needs_scratch:
                                T.buffer_store(scratch, tail(r, i), [r * self.planes.pixels + at])
                            else:
                                self._store(tail(r, i), channel + r, base + at, 1)
            if needs_scratch:
                self._compact(scratch, rows, channel, image)

    def _accumulate(self, src, origin, b, first_row, rows, inputs, rest) -> tuple[Callable, Callable]:
        """Sums of a tile, (row, vector) -> vector of pixels, and of its ``rest`` tail pixels, (row, i) -> float."""
        lanes, count = self.tiling.lanes, len(inputs)
        # a buffer each, or LLVM would keep them in memory as one
        tails = [T.alloc_buffer((rows,), "float32", scope="local", annotations=REGISTERS) for _ in range(rest)]
        for tail in tails:
            T.buffer_store(tail, splat(0, rows), [run(0, rows)])
        acc = T.alloc_buffer((rows * count * lanes,), "float32", scope="local", annotations=REGISTERS)

        def at(r, v):
            return run((r * count + v) * lanes, lanes)

        for r in range(rows):
            for v in range(count):
                T.buffer_store(acc, splat(0, lanes), [at(r, v)])

        def multiply_add(base, w, tap, offset):
            for i, tail in enumerate(tails):
                pixel = T.Bind(splat(src[base + offset + self.planes.pixels - rest + i], rows))
                T.buffer_store(tail, tail[run(0, rows)] + w(tap, run(first_row, rows)) * pixel, [run(0, rows)])
            # the smaller side is held in registers, the other streams through one
            if count < rows:
                xs = [T.Bind(src[run(base + offset + i, lanes)]) for i in inputs]
                for r in range(rows):
                    wr = T.Bind(splat(w(tap, first_row + r), lanes))
                    for v in range(count):
                        T.buffer_store(acc, acc[at(r, v)] + wr * xs[v], [at(r, v)])
            else:
                ws = [T.Bind(splat(w(tap, first_row + r), lanes)) for r in range(rows)]
                for v, i in enumerate(inputs):
                    xv = T.Bind(src[run(base + offset + i, lanes)])
                    for r in range(rows):
                        T.buffer_store(acc, acc[at(r, v)] + ws[r] * xv, [at(r, v)])

        kh, kw = self.p.kernel
        with self.weights.reduction(b) as (channel_offset, w):
            base = T.Bind(origin + channel_offset)
            if self.p.taps <= MAX_UNROLLED_TAPS:
                for tap in range(self.p.taps):
                    multiply_add(base, w, tap, self.planes.tap(*divmod(tap, kw)))
            else:
                with T.serial(0, kh) as row:
                    for col in range(kw):
                        multiply_add(base, w, row * kw + col, self.planes.tap(row, col))
        return lambda r, v: acc[at(r, v)], lambda r, i: tails[i][r]

    def _store(self, value, channel, at, lanes) -> None:
        index = run(at, lanes)
        value = value + splat(self.bias[channel], lanes)
        if self.residual is not None:
            value = value + self.residual[index]
        T.buffer_store(self.y, ACTIVATION[self.p.activation](value, lanes), [index])

    def _compact(self, scratch, rows, channel, image) -> None:
        """Flat pixels at the planes' pitch to rows of the output, through the epilogue."""
        width, height = self.p.out_width, self.p.out_height
        lanes, offsets = spans(width, self.c["lanes"])
        for r in range(rows):
            base = image * self.image_out + (channel + r) * (height * width)
            with T.serial(0, height) as row:
                for x in offsets:
                    at = r * self.planes.pixels + row * self.planes.pitch + x
                    self._store(scratch[run(at, lanes)], channel + r, base + row * width + x, lanes)
