"""Direct convolution with a register tile of output channels x vectors of pixels, over any weight format.

    for tile of pixels, for panel of input channels, for block row b:      # or block rows outermost: Config "order"
        acc[rows, vectors, lanes] = bias               # registers; of later panels: the sums so far, from y
        for (input channel, weights) of block row b in the panel:          # the weight format's loop: dense or BSR
            for tap: acc[r, v, :] += w[tap, r] * x[channel, pixel v + tap]
        y = activation(acc + residual)

Config "panel" is how many input channels are swept at a time, so that their pixels of one tile stay in the first-level
cache while every block row reads them. How pixels become vectors is told in
tiling.py, where taps are in planes.py. Several threads cut the pixels, or the block rows where each gets as many
stored blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.emit.sharing import busiest, in_parts, in_turn, splits, sub_rows, waits
from kerf.kernels.cpu.emit.tiling import L1_FLOATS, L2_FLOATS, MAX_TAIL, Tiling
from kerf.kernels.cpu.emit.weight_format import Weights
from kerf.kernels.cpu.isa import parallel_loop, vector_unit
from kerf.kernels.cpu.layout import LINE, in_planes, out_planes
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import prefetch, run, spans, splat

LEAST_USES = 4  # of what is fetched ahead; less work would not cover the asking
MAX_UNROLLED_TAPS = 9  # larger kernels loop over their rows, to bound code size


def configs(p: Problem, target: Target, heights: tuple[int, ...], inputs: float) -> list[tuple[float, dict]]:
    """(estimated cycles, configuration) for block rows cut into sub-rows of ``heights`` channels.

    ``inputs``: input channels that a block row reads on average.
    """
    planes = Planes.of(p)
    found: dict[tuple, tuple[float, dict]] = {}
    widths, registers = vector_unit(target)
    per_group = p.in_channels // p.groups
    whole = p.n or p.out_channels
    for wide in widths:
        for height in heights:
            # accumulators, the held operands (the smaller side of the tile) and one streaming through
            fit = next(v for v in range(registers, 0, -1) if height * v + min(height, v) < registers or v == 1)
            for vectors in {fit, max(fit - 1, 1), max(fit - 2, 1), max(fit // 2, 1)}:
                tail = 0 < planes.pixels % wide <= MAX_TAIL and planes.pixels > wide
                for pixels in (*(["tail"] if tail else []), "flat", "rows"):
                    tiling = Tiling.of(planes, pixels, wide, vectors)
                    sweeps = -(-p.out_channels // whole) * -(-whole // height)
                    largest = max(size for _, _, size in tiling.tiles) * tiling.lanes
                    fits = max(8, L1_FLOATS // largest)
                    for order, panel in _sweeps(p, tiling, per_group, fits):
                        c = {"lanes": wide, "rows": height, "vectors": vectors, "pixels": pixels, "order": order}
                        key = (tiling.lanes, height, tiling.tiles, tiling.per_row, tiling.tail, order, panel)
                        reach = per_group * planes.channel if order == "blocks" else panel * largest
                        panels = -(-per_group // panel)
                        cost = sweeps * tiling.cycles(height, inputs, panels, reach)
                        cost += math.prod(out_planes(p)[1:]) / LINE * _store_cycles(p, tiling, order)
                        cost += _copy_cycles(p, planes)
                        for split in splits(target, tiling.total if order == "tiles" else 0):
                            shared = p.batch * (cost * busiest(p, {**c, **split}, tiling.runs) + waits(p, split))
                            found.setdefault((*key, *split.values()), (shared, {**c, **split, "panel": panel}))
    return list(found.values())


def _sweeps(p: Problem, tiling: Tiling, inputs: int, fits: int) -> list[tuple[str, int]]:
    """(order, input channels a panel) worth trying."""
    if tiling.needs_scratch:
        return [("blocks", inputs)]
    one_tile = tiling.tiles[0][1] == len(tiling.tiles) == 1
    found = [("tiles", inputs)] if one_tile else [("blocks", inputs), ("tiles", inputs)]
    if p.taps == 1 and fits < inputs:
        found += [("tiles", -(-inputs // n)) for n in sorted({-(-inputs // fits), max(2, -(-inputs // (2 * fits)))})]
    return found


def _copy_cycles(p: Problem, planes: Planes) -> float:
    if not planes.copied:
        return 0
    floats = p.in_channels * planes.channel
    return floats / (8 if p.stride[1] == 1 else 4) + (floats / LINE * 10 if floats > L2_FLOATS else 0)


def _store_cycles(p: Problem, tiling: Tiling, order: str) -> float:
    """A line, beyond what the tile's own stores cost: images past the second-level cache wait for lines they replace,
    and the longer the further apart these are.
    """
    if math.prod(out_planes(p)[1:]) > L2_FLOATS:
        return 10 if order == "tiles" else 3
    return 3 if tiling.needs_scratch else 0


def prim_func(p: Problem, c: dict, target: Target, weights: Weights) -> tvm.tirx.PrimFunc:
    """The kernel: (x, *weights, bias, [residual], y), images as in kerf.kernels.cpu.layout."""
    planes = Planes.of(p)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, bias, out = parameters(p, weights)
        emit = Emit(p, c, planes, weights, bias, out)
        flat = T.decl_buffer((math.prod(in_planes(p)),), "float32", data=x.data)
        padded = T.alloc_buffer((planes.scratch(p.in_channels),), "float32") if planes.copied else None
        with T.serial(0, p.batch) as image:
            origin = image * math.prod(in_planes(p)[1:])
            if padded is None:
                emit.image(flat, origin, image)
            else:
                planes.emit_copy(flat, origin, padded, p.in_channels, c["lanes"], parallel_loop(target))
                emit.image(padded, 0, image)
    return builder.get()


def parameters(p: Problem, weights: Weights) -> tuple:
    """Declare (x, *weights, bias, [residual], y) of the function being built: (x, bias, where results go)."""
    x = T.arg("x", T.buffer(in_planes(p), "float32"))
    weights.declare()
    bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
    residual = T.arg("residual", T.buffer(out_planes(p), "float32")) if p.residual else None
    y = T.arg("y", T.buffer(out_planes(p), "float32"))
    return x, bias, Output.of(p, y, residual)


class Emit:
    """The loops of one function under construction."""

    def __init__(self, p, c, planes, weights, bias, out):
        self.p, self.c, self.planes, self.weights, self.bias = p, c, planes, weights, bias
        self.tiling = Tiling.of(planes, c["pixels"], c["lanes"], c["vectors"])
        self.panels = -(-(p.in_channels // p.groups) // c["panel"])
        self.out = out
        uses = p.nnzb / p.in_channels if p.n else p.out_channels / c["rows"]  # of an input vector
        large = p.in_channels * planes.channel > L2_FLOATS
        self.far_input = p.taps == 1 and large and uses >= LEAST_USES

    def image(self, src, origin, image) -> None:
        """All outputs of one image whose input planes start at ``origin`` of ``src``."""
        tiling = self.tiling
        if self.out.pitch > self.p.out_height * self.p.out_width and not tiling.covers:
            self.out.blank_lines(image, self.c["lanes"])

        if self.c["order"] == "tiles":
            by_pixels = self.c.get("split") == "pixels"
            in_parts(self.weights, self.p.out_channels, by_pixels, partial(self._tiles, src, origin, image))
        else:
            self.each(partial(self.over_tiles, src, origin, image))

    def _tiles(self, src, origin, image, turn: tuple, rows: Callable) -> None:
        before = 0
        for first, tiles, vectors in self.tiling.tiles:
            loop, tile = in_turn(turn, before, tiles, self.tiling.total)
            before += tiles
            with loop as i, T.serial(0, self.panels) as panel:
                at = T.Bind(first + tile(i) * vectors)
                where, ends = self._places(at, vectors), self.tiling.ends(first, vectors)
                sums = self._cut(partial(self._tile, src, origin, image, where, ends, panel, None))
                if self.far_input:
                    later = origin + (at + vectors) * self.tiling.lanes
                    rows(partial(self._fetch_and, sums, src, later, vectors, panel))
                else:
                    rows(sums)

    def _fetch_and(self, sums: Callable, src, later, vectors: int, panel, b, height: int) -> None:
        """Every block row asks for some channels' pixels of the thread's next tile, at float ``later`` of ``src``: an
        image that outgrew the second-level cache is far away, and no prefetcher sees tiles coming.
        """
        channels = self.c["panel"]
        some = -(-channels // max(1, self.weights.rows))
        with T.serial(0, T.max(0, T.min(some, channels - b * some))) as i:
            channel = panel * channels + b * some + i
            for v in range(0, vectors * self.tiling.lanes, LINE):
                prefetch(src[later + channel * self.planes.channel + v], level=2)
        sums(b, height)

    def each(self, body: Callable) -> None:
        """body(block row, first of its channels, channels) for what a register tile holds of every block row."""
        in_parts(self.weights, self.p.out_channels, False, lambda _, rows: rows(self._cut(body)))

    def _cut(self, body: Callable) -> Callable:
        return lambda b, height: sub_rows(height, self.c["rows"], partial(body, b))

    def _places(self, first, vectors: int) -> list[tuple]:
        return [tuple(T.Bind(at) for at in self.tiling.place(first + v)) for v in range(vectors)]

    def over_tiles(self, src, origin, image, b, first_row, rows) -> None:
        """All pixels of ``rows`` channels of block row b."""
        needs_scratch = self.tiling.needs_scratch
        scratch = T.alloc_buffer((rows * self.planes.pixels,), "float32") if needs_scratch else None
        for first, tiles, vectors in self.tiling.tiles:
            with T.serial(0, tiles) as t:
                where, ends = self._places(first + t * vectors, vectors), self.tiling.ends(first, vectors)
                self._tile(src, origin, image, where, ends, 0, scratch, b, first_row, rows)
        if needs_scratch:
            self._compact(scratch, rows, b * self.weights.n + first_row, image)

    def _tile(self, src, origin, image, where, ends, panel, scratch, b, first_row, rows) -> None:
        """One register tile: sums of ``rows`` channels of block row b at the vectors ``where``."""
        lanes, count, rest = self.tiling.lanes, len(where), self.tiling.tail if ends else 0
        channel = T.Bind(b * self.weights.n + first_row)
        planes = [T.Bind(self.out.plane(image, channel + r)) for r in range(rows)]
        # a buffer each, or LLVM would keep them in memory as one
        tails = [T.alloc_buffer((rows,), "float32", scope="local", annotations=REGISTERS) for _ in range(rest)]
        acc = T.alloc_buffer((rows * count * lanes,), "float32", scope="local", annotations=REGISTERS)
        tail_at = self.planes.pixels - rest

        def at(r, v):
            return run((r * count + v) * lanes, lanes)

        def begin() -> None:
            for tail in tails:
                T.buffer_store(tail, self.bias[run(channel, rows)], [run(0, rows)])
            for r in range(rows):
                start = T.Bind(splat(self.bias[channel + r], lanes))
                for v in range(count):
                    T.buffer_store(acc, start, [at(r, v)])

        def resume() -> None:
            for i, tail in enumerate(tails):
                for r in range(rows):
                    T.buffer_store(tail, self.out.y[planes[r] + tail_at + i], [r])
            for r in range(rows):
                for v, (_, out) in enumerate(where):
                    T.buffer_store(acc, self.out.y[run(planes[r] + out, lanes)], [at(r, v)])

        def keep() -> None:
            for r in range(rows):
                for v, (_, out) in enumerate(where):
                    T.buffer_store(self.out.y, acc[at(r, v)], [run(planes[r] + out, lanes)])
                for i, tail in enumerate(tails):
                    T.buffer_store(self.out.y, tail[r], [planes[r] + tail_at + i])

        def finish() -> None:
            for r in range(rows):
                if ends and self.tiling.blank and scratch is None:
                    self.out.blank(planes[r], self.out.pitch - self.tiling.blank, self.c["lanes"])
                for v, (_, out) in enumerate(where):
                    if scratch is None:
                        self.out.store(acc[at(r, v)], planes[r] + out, lanes)
                    else:
                        T.buffer_store(scratch, acc[at(r, v)], [run(r * self.planes.pixels + out, lanes)])
                for i, tail in enumerate(tails):
                    if scratch is None:
                        self.out.store(tail[r], planes[r] + tail_at + i, 1)
                    else:
                        T.buffer_store(scratch, tail[r], [r * self.planes.pixels + tail_at + i])

        _first_or_later(panel, self.panels, begin, resume)
        self._sum(src, origin, b, first_row, rows, [i for i, _ in where], panel, acc, at, tails)
        _first_or_later(self.panels - 1 - panel, self.panels, finish, keep)

    def _sum(self, src, origin, b, first_row, rows, inputs, panel, acc, at, tails) -> None:
        lanes, count, rest = self.tiling.lanes, len(inputs), len(tails)

        def multiply_add(base, w, tap, offset):
            for i, tail in enumerate(tails):
                pixel = T.Bind(splat(src[base + offset + self.planes.pixels - rest + i], rows))
                T.buffer_store(tail, tail[run(0, rows)] + w(tap, run(0, rows)) * pixel, [run(0, rows)])
            # the smaller side is held in registers, the other streams through one
            if count < rows:
                xs = [T.Bind(src[run(base + offset + i, lanes)]) for i in inputs]
                for r in range(rows):
                    wr = T.Bind(splat(w(tap, r), lanes))
                    for v in range(count):
                        T.buffer_store(acc, acc[at(r, v)] + wr * xs[v], [at(r, v)])
            else:
                ws = [T.Bind(splat(w(tap, r), lanes)) for r in range(rows)]
                for v, i in enumerate(inputs):
                    xv = T.Bind(src[run(base + offset + i, lanes)])
                    for r in range(rows):
                        T.buffer_store(acc, acc[at(r, v)] + ws[r] * xv, [at(r, v)])

        kh, kw = self.p.kernel
        with self.weights.reduction(b, panel, first_row, rows) as (channel_offset, w):
            base = T.Bind(origin + channel_offset)
            if self.p.taps <= MAX_UNROLLED_TAPS:
                for tap in range(self.p.taps):
                    multiply_add(base, w, tap, self.planes.tap(*divmod(tap, kw)))
            else:
                with T.serial(0, kh) as row:
                    for col in range(kw):
                        multiply_add(base, w, row * kw + col, self.planes.tap(row, col))

    def _compact(self, scratch, rows, channel, image) -> None:
        """Flat pixels at the planes' pitch to rows of the output, through the epilogue."""
        width, height = self.p.out_width, self.p.out_height
        lanes, offsets = spans(width, self.c["lanes"])
        for r in range(rows):
            plane = T.Bind(self.out.plane(image, channel + r))
            with T.serial(0, height) as row:
                for x in offsets:
                    at = r * self.planes.pixels + row * self.planes.pitch + x
                    self.out.store(scratch[run(at, lanes)], plane + row * width + x, lanes)


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
