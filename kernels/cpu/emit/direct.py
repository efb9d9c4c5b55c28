"""Direct convolution with a register tile of output channels x vectors of pixels, over any weight format.

    for tile of pixels, for panel of input channels, for block row b:      # or block rows outermost: Config "order"
        acc[rows, vectors, lanes] = bias               # registers; of later panels: the sums so far, from y
        for (input channel, weights) of block row b in the panel:          # the weight format's loop: dense or BSR
            for tap: acc[r, v, :] += w[tap, r] * x[channel, pixel v + tap]
        y = activation(acc + residual)

Config "panel" is how many input channels are swept at a time, so that their pixels of one tile stay in the first-level
cache while every block row reads them. How pixels become vectors is told in tiling.py, where taps are in planes.py,
what a tile computes in register_tile.py. Several threads cut the pixels, or the block rows where each gets as many
stored blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.emit.register_tile import MAX_UNROLLED_TAPS, Function, Place, Source, Tile
from kerf.kernels.cpu.emit.sharing import busiest, in_parts, in_turn, splits, sub_rows, waits
from kerf.kernels.cpu.emit.tiling import MAX_TAIL, Tiling
from kerf.kernels.cpu.emit.weight_format import Rows, Weights
from kerf.kernels.cpu.layout import LINE, in_planes, out_planes
from kerf.kernels.cpu.machine import Machine, machine_of, parallel_loop
from kerf.kernels.problem import Problem
from kerf.kernels.vector import groups, prefetch, run

LEAST_USES = 4  # of what is fetched ahead; less work would not cover the asking


def configs(p: Problem, target: Target, heights: tuple[int, ...], inputs: float) -> list[tuple[float, Config]]:
    """(estimated cycles, configuration) for block rows cut into sub-rows of ``heights`` channels.

    ``inputs``: input channels that a block row reads on average.
    """
    planes, machine = Planes.of(p), machine_of(target)
    found: dict[tuple, tuple[float, Config]] = {}
    for wide, height in product(machine.lanes, heights):
        # accumulators, the held operands (the smaller side of the tile) and one streaming through
        registers = machine.registers
        fit = next(v for v in range(registers, 0, -1) if height * v + min(height, v) < registers or v == 1)
        counts = {fit, max(fit - 1, 1), max(fit - 2, 1), max(fit // 2, 1)}
        left = planes.pixels % wide
        tail = 0 < left <= MAX_TAIL and planes.pixels > wide
        for vectors, pixels in product(counts, (*(["tail"] if tail else []), "flat", "rows")):
            if pixels == "tail" and height * vectors + left + min(height, vectors) >= registers:
                continue  # the sums of a tail are in registers, too
            tiling = Tiling.of(planes, pixels, wide, vectors)
            for order, panel, cost in _sweeps(p, machine, tiling, height, inputs):
                c: Config = {"lanes": wide, "rows": height, "vectors": vectors, "pixels": pixels, "order": order}
                key = (tiling.lanes, height, tiling.tiles, tiling.per_row, tiling.tail, order, panel)
                for split in splits(target, tiling.total if order == "tiles" else 0):
                    share = busiest(p, {**c, **split}, tiling.runs)
                    shared = p.batch * (cost * share + waits(p, split))
                    found.setdefault((*key, *split.values()), (shared, {**c, **split, "panel": panel}))
    return list(found.values())


def _sweeps(
    p: Problem, machine: Machine, tiling: Tiling, height: int, inputs: float
) -> Iterator[tuple[str, int, float]]:
    """(order, input channels a panel, estimated cycles of one thread), those worth trying."""
    per_group, whole = p.in_channels // p.groups, p.n or p.out_channels
    sweeps = -(-p.out_channels // whole) * -(-whole // height)
    largest = max(size for _, _, size in tiling.tiles) * tiling.lanes
    if p.taps > 1:  # a line more of each row, since taps are off it
        largest = p.kernel[0] * (largest + LINE)
    fits = [max(8, floats // largest) for floats in (machine.l1_floats, machine.l2_floats // 2)]
    for order, panel in _orders(p, tiling, per_group, fits):
        reach = per_group * tiling.planes.channel if order == "blocks" else panel * largest
        cost = sweeps * tiling.cycles(machine, height, inputs, -(-per_group // panel), reach, fetches(p, machine))
        cost += math.prod(out_planes(p)[1:]) / LINE * _store_cycles(p, machine, tiling, order)
        cost += _copy_cycles(p, machine, tiling.planes)
        yield order, panel, cost


def _orders(p: Problem, tiling: Tiling, inputs: int, fits: Sequence[int]) -> list[tuple[str, int]]:
    """(order, input channels a panel) for ``inputs`` of which ``fits`` stay in the first-level and in half of the
    second-level cache.
    """
    if tiling.needs_scratch:
        return [("blocks", inputs)]
    one_tile = tiling.tiles[0][1] == len(tiling.tiles) == 1
    found = [("tiles", inputs)] if one_tile else [("blocks", inputs), ("tiles", inputs)]
    if fits[0] < inputs:
        most = (fits[0], 2 * fits[0]) if p.taps == 1 else fits
        found += [("tiles", -(-inputs // n)) for n in sorted({max(2, -(-inputs // m)) for m in most})]
    return found


def _copy_cycles(p: Problem, machine: Machine, planes: Planes) -> float:
    if not planes.copied:
        return 0
    floats = p.in_channels * planes.channel
    return floats / (8 if p.stride[1] == 1 else 4) + (floats / LINE * 10 if floats > machine.l2_floats else 0)


def _store_cycles(p: Problem, machine: Machine, tiling: Tiling, order: str) -> float:
    """A line, beyond what the tile's own stores cost: images past the second-level cache wait for lines they replace,
    and the longer the further apart these are.
    """
    if math.prod(out_planes(p)[1:]) > machine.l2_floats:
        return 10 if order == "tiles" else 3
    return 3 if tiling.needs_scratch else 0


def prim_func(p: Problem, c: Config, target: Target, weights: Weights) -> tvm.tirx.PrimFunc:
    """The kernel: (x, *weights, bias, [residual], y), images as in kerf.kernels.cpu.layout."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, bias, out = parameters(p, weights)
        emit = Emit(p, c, machine_of(target), weights, bias, out)
        flat = T.decl_buffer((math.prod(in_planes(p)),), "float32", data=x.data)
        emit.images(flat, flat, target)
    return builder.get()


def parameters(p: Problem, weights: Weights) -> tuple[Any, Any, Output]:
    """Declare (x, *weights, bias, [residual], y) of the function being built: (x, bias, where results go)."""
    x = T.arg("x", T.buffer(in_planes(p), "float32"))
    weights.declare()
    bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
    residual = T.arg("residual", T.buffer(out_planes(p), "float32")) if p.residual else None
    y = T.arg("y", T.buffer(out_planes(p), "float32"))
    return x, bias, Output.of(p, y, residual)


def fetches(p: Problem, machine: Machine) -> bool:
    """Whether tiles ask for the next input channel's pixels before their turn. Of a single tap's the CPU has begun to
    read ten channels ahead; with AVX-512 such layers read copies (columns.py), and on NEON it was not measured. Bytes
    that are not copied become floats as they are read, a quarter of the lines.
    """
    floats = not p.x.quantised or Planes.of(p).copied
    return 1 < p.taps <= MAX_UNROLLED_TAPS and machine.family == "avx2" and floats


class Emit:
    """The loops of one function under construction."""

    def __init__(self, p: Problem, c: Config, machine: Machine, weights: Weights, bias, out: Output):
        self.p, self.c, self.weights, self.out = p, c, weights, out
        self.planes = Planes.of(p)
        self.tiling = Tiling.of(self.planes, c["pixels"], c["lanes"], c["vectors"])
        panels = -(-(p.in_channels // p.groups) // c["panel"])
        self.function = Function(
            self.planes, self.tiling, weights, bias, out, panels, c["lanes"], machine.by_element, fetches(p, machine)
        )
        uses = p.nnzb / p.in_channels if p.n else p.out_channels / c["rows"]  # of an input vector
        large = p.in_channels * self.planes.channel > machine.l2_floats
        self.far_input = p.taps == 1 and large and uses >= LEAST_USES

    def images(self, flat, numbers, target: Target, **padding: Any) -> None:
        """All outputs, of the planes in ``flat``, read as ``numbers`` where they are not copied; ``padding``: how they
        are copied (Padding).
        """
        p, planes = self.p, self.planes
        padded = T.alloc_buffer((planes.scratch(p.in_channels),), "float32") if planes.copied else None
        with T.serial(0, p.batch) as image:
            origin = image * math.prod(in_planes(p)[1:])
            if padded is None:
                self.image(Source(numbers, origin, image))
            else:
                copy = Padding(planes, flat, padded, self.c["lanes"], **padding).copy
                copy(origin, p.in_channels, parallel_loop(target))
                self.image(Source(padded, 0, image))

    def image(self, source: Source) -> None:
        """All outputs of one image."""
        if self.out.pitch > self.p.out_height * self.p.out_width and not self.tiling.covers:
            self.out.blank_lines(source.image, self.c["lanes"])
        if self.c["order"] == "tiles":
            by_pixels = self.c.get("split") == "pixels"
            in_parts(self.weights, self.p.out_channels, by_pixels, partial(self._tiles, source))
        else:
            self.each(partial(self.over_tiles, source))

    def _tiles(self, source: Source, turn: tuple, rows: Callable) -> None:
        before = 0
        for first, tiles, vectors in self.tiling.tiles:
            loop, tile = in_turn(turn, before, tiles, self.tiling.total)
            before += tiles
            with loop as i, T.serial(0, self.function.panels) as panel:
                at = T.Bind(first + tile(i) * vectors)
                place = Place(self._places(at, vectors), self.tiling.ends(first, vectors), panel)
                sums = self._cut(partial(self._tile, source, place))
                if self.far_input:
                    later = source.origin + (at + vectors) * self.tiling.lanes
                    rows(partial(self._fetch_and, sums, source, later, place))
                else:
                    rows(sums)

    def _fetch_and(self, sums: Callable, source: Source, later, place: Place, b, height: int) -> None:
        """Every block row asks for some channels' pixels of the thread's next tile, at float ``later``: an image that
        outgrew the second-level cache is far away, and no prefetcher sees tiles coming.
        """
        channels = self.c["panel"]
        some = -(-channels // max(1, self.weights.rows))
        with T.serial(0, T.max(0, T.min(some, channels - b * some))) as i:
            channel = place.panel * channels + b * some + i
            for v in range(0, len(place.vectors) * self.tiling.lanes, LINE):
                prefetch(source.buffer[later + channel * self.planes.channel + v], level=2)
        sums(b, height)

    def each(self, body: Callable[[Rows], None]) -> None:
        """``body`` for what a register tile holds of every block row."""
        in_parts(self.weights, self.p.out_channels, False, lambda _, rows: rows(self._cut(body)))

    def _cut(self, body: Callable[[Rows], None]) -> Callable:
        return lambda b, height: sub_rows(b, height, self.c["rows"], body)

    def _places(self, first, vectors: int) -> list[tuple[Any, Any]]:
        found = (self.tiling.place(first + v) for v in range(vectors))
        return [(T.Bind(source), T.Bind(out)) for source, out in found]

    def over_tiles(self, source: Source, rows: Rows) -> None:
        """All pixels of some channels."""
        needs_scratch = self.tiling.needs_scratch
        scratch = T.alloc_buffer((rows.count * self.planes.pixels,), "float32") if needs_scratch else None
        for first, tiles, vectors in self.tiling.tiles:
            with T.serial(0, tiles) as t:
                where = self._places(first + t * vectors, vectors)
                self._tile(source, Place(where, self.tiling.ends(first, vectors), scratch=scratch), rows)
        if needs_scratch:
            self._compact(scratch, rows, source.image)

    def _tile(self, source: Source, place: Place, rows: Rows) -> None:
        Tile(self.function, source, place, rows).emit()

    def _compact(self, scratch, rows: Rows, image) -> None:
        """Flat pixels at the planes' pitch to rows of the output, through the epilogue."""
        width, height = self.p.out_width, self.p.out_height
        for r in range(rows.count):
            channel = T.Bind(rows.channel(self.weights) + r)
            plane = T.Bind(self.out.plane(image, channel))
            self.out.turn_to(channel)
            with T.serial(0, height) as row:
                at = r * self.planes.pixels + row * self.planes.pitch
                for begin, lanes, offsets in groups(width, self.c["lanes"]):
                    vectors = [scratch[run(at + begin + x, lanes)] for x in offsets]
                    self.out.store_row(vectors, plane + row * width + begin, offsets, lanes)
