"""Direct convolution of bytes, over blocks of any number of output channels: 1xN block-sparse, or one block of all.

    for strip of output pixels, for block row b:
        panel[quad, pixel, 4] = the block row's channels, four and four side by side   # once for N outputs
        for sub-row of ``rows`` outputs, for vector of ``bytes`` pixels of the strip:
            acc[rows, 4 vectors] = start                                               # registers
            for quad of b, for tap: acc[r, v] += four products of each pixel           # dot.py
            y = epilogue(acc)                                                          # epilogue.py

Images are planes of bytes (kerf.kernels.cpu.layout). A k x k or strided convolution reads padded copies, split by phase
(emit/planes.py): its sums go through a buffer, since output rows are shorter than those of the copies. A strip is
``strip`` output rows of these, else ``strip`` vectors of pixels. Threads cut the strips, or the block rows.

``panel`` 0 does without the panel and puts channels side by side in registers, once for every sub-row and tap, which
pays where a stride's phases make panels large, or one sub-row is all. ``fold`` 1: every tap of a channel is a channel
of its own, and there is one tap, so that three channels do not take the place of four. ``near`` 1: a strip's pixels are
first copied to where no vector straddles two cache lines and one channel's lines are not those of another, for all
block rows to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.padding import Padding
from kerf.kernels.cpu.emit.register_tile import MAX_UNROLLED_TAPS
from kerf.kernels.cpu.emit.sharing import sub_rows
from kerf.kernels.cpu.emit.weight_format import Rows
from kerf.kernels.cpu.int8.dot import DOTS, PART, QUAD, in_order, linear, linear_tile, quads_of, side_by_side, weaving
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.int8.quads import channel_type
from kerf.kernels.cpu.int8.strips import Strips, through_panel
from kerf.kernels.cpu.layout import LINE, in_planes, out_planes
from kerf.kernels.cpu.machine import Machine, machine_of, parallel_loop
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import every, groups, prefetch, run

AHEAD = 16 * LINE  # words of weights, 1 KiB


class Arguments:
    """What the function being built is given."""

    def __init__(self, p: Problem, c: Config, n: int):
        words, listed, blocks = T.int32(), T.int32(), -(-p.out_channels // n)
        self.x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        self.data = T.arg("data", T.buffer((words,), "int32"))
        kind = "int32" if "fold" in c else channel_type(p.in_channels)
        self.channels = T.arg("channels", T.buffer((listed,), kind))
        self.indptr = T.arg("indptr", T.buffer((blocks + 1,), "int32"))
        if DOTS[c["dot"]].paired:
            cut, cuts, sub_rows_ = T.int32(), T.int32(), blocks * -(-n // c["rows"])
            self.rest = T.arg("rest", T.buffer((cut,), "int32"))
            self.rest_at = T.arg("rest_at", T.buffer((cuts,), "int32"))
            self.rest_indptr = T.arg("rest_indptr", T.buffer((sub_rows_ + 1,), "int32"))
        self.epilogue = Epilogue(p)
        self.epilogue.declare_images()


class Function:
    """The code of one function: ``n`` outputs of a block row."""

    def __init__(self, p: Problem, c: Config, n: int, machine: Machine):
        self.p, self.c, self.blocks = p, c, -(-p.out_channels // n)
        self.given = Arguments(p, c, n)
        self.loops = [Loops(p, c, n, self.given, strips) for strips in Strips.of(p, c, machine)]

    def emit(self, target: Target) -> None:
        p, widest = self.p, self.loops[0].strips
        flat = T.decl_buffer((math.prod(in_planes(p)),), "uint8", data=self.given.x.data)
        room = widest.planes.scratch(p.in_channels) + widest.region + widest.width
        padded = T.alloc_buffer((room,), "uint8") if widest.planes.copied else None
        with T.serial(0, p.batch) as image:
            origin = image * math.prod(in_planes(p)[1:])
            if padded is None:
                self._image(flat, origin, image)
            else:
                fill = self.given.epilogue.zero[0]
                Padding(widest.planes, flat, padded, 32, fill=fill).copy(origin, p.in_channels, parallel_loop(target))
                self._image(padded, 0, image)

    def _image(self, source, origin, image) -> None:
        parts = self.c.get("parts", 1)
        if parts == 1:
            for loops in self.loops:
                loops.emit(source, origin, image, (0, loops.strips.count), (0, self.blocks))
            return
        with T.parallel(0, parts) as k:
            blocks = T.Bind(k * self.blocks // parts), T.Bind((k + 1) * self.blocks // parts)
            for loops in self.loops:
                count = loops.strips.count
                if self.c["split"] == "pixels":
                    own = T.Bind(k * count // parts), T.Bind((k + 1) * count // parts)
                    loops.emit(source, origin, image, own, (0, self.blocks))
                else:
                    loops.emit(source, origin, image, (0, count), blocks)


class Loops:
    """Over strips of one width."""

    def __init__(self, p: Problem, c: Config, n: int, given: Arguments, strips: Strips):
        self.p, self.c, self.n, self.given, self.strips = p, c, n, given, strips
        self.taps = 1 if "fold" in c else p.taps
        self.dot, self.width, self.epilogue = DOTS[c["dot"]], strips.width, given.epilogue
        self.lanes = strips.lanes or self.width // QUAD  # pixels of a vector
        self.subs = -(-n // c["rows"])  # sub-rows of a block row
        # else channels go from the image to the products in registers, again for every sub-row and tap
        self.through_panel = through_panel(c, n, bool(strips.rows))
        # pixels of a tile are as quads_of leaves them
        self.in_parts = strips.vectors == QUAD and not (strips.rows and self.through_panel)
        # rows of a strip are compacted as bytes, unless what is added to them is read row by row
        self.narrow = self.in_parts and self.dot.narrow is not None and p.y.quantised and not p.residual

    def emit(self, source, origin, image, strips: tuple, blocks: tuple) -> None:
        s = self.strips
        most = -(-self.p.in_channels * (self.p.taps // self.taps) // QUAD)  # quads of a block row
        size = most * s.phases * s.region * QUAD if self.through_panel else 1
        self.panel = T.alloc_buffer((size,), "int8")
        self.copy: Any = T.alloc_buffer((self.p.in_channels * s.size,), "uint8") if self.c.get("near") else None
        kind = "uint8" if self.narrow else "int32"
        self.sums: Any = T.alloc_buffer((self.c["rows"] * s.room,), kind) if s.rows else None
        self.order = weaving(self.given.indptr[0]) if s.lanes else None
        full, short = self.p.out_channels // self.n, self.p.out_channels % self.n
        with T.serial(0, strips[1] - strips[0]) as i:
            pixel, place = (T.Bind(v) for v in s.first(strips[0] + i))
            near, at = self._near(source, origin + pixel) if self.c.get("near") else (source, origin + pixel)
            body = partial(self._block_row, near, at, image, place)
            with T.serial(blocks[0], T.min(blocks[1], full) if short else blocks[1]) as b:
                body(b, self.n)
            if short:
                with T.If(blocks[1] > full), T.Then():
                    body(full, short)

    def _near(self, source, at) -> tuple[Any, Any]:
        """A copy of the strip's pixels of all channels, each beside the next, in as few cache lines as there can be."""
        with T.serial(0, self.p.in_channels) as channel:
            pixels = source[run(at + channel * self.strips.planes.channel, self.strips.size)]
            T.buffer_store(self.copy, pixels, [run(channel * self.strips.size, self.strips.size)])
        return self.copy, 0

    def _block_row(self, source, origin, image, place, block, height: int) -> None:
        begin = T.Bind(self.given.indptr[block])
        count = T.Bind(self.given.indptr[block + 1] - begin)
        if self.through_panel:
            self._fill_panel(source, origin, begin, count)
        pixels = partial(self._quad, source, origin, begin)
        sub_rows(block, height, self.c["rows"], partial(self._sub_row, pixels, image, place, begin, count))

    def _fill_panel(self, source, origin, begin, count) -> None:
        s, width = self.strips, self.width

        def fill(quad, phase, pixel, vectors: int) -> None:
            to = T.Bind(((quad * s.phases + phase) * s.region + pixel) * QUAD)
            found = self._quad(source, origin, begin, vectors, quad, phase * s.planes.plane + pixel)
            for v, vector in enumerate(found):
                self._to_panel(vector, v, to)

        whole, left = divmod(s.region, width)
        with T.serial(0, count) as quad, T.serial(0, s.phases) as phase:
            with T.serial(0, whole) as i:
                fill(quad, phase, T.Bind(i * width), s.vectors)
            if left:
                fill(quad, phase, whole * width, left // self.lanes)

    def _quad(self, source, origin, begin, vectors: int, quad, pixel) -> list:
        """``vectors`` vectors of pixels of a block row's quad, read where its channels lie."""
        at = origin + pixel
        first = (begin + quad) * QUAD
        step = self.strips.size if self.c.get("near") else 1 if "fold" in self.c else self.strips.planes.channel
        offsets = [T.cast(self.given.channels[first + k], "int32") * step for k in range(QUAD)]
        if (self.in_parts and vectors == QUAD) or not self.strips.lanes:
            given = [T.Bind(source[run(at + offset, self.width)]) for offset in offsets]
            return quads_of(given, self.width, self.dot.signed)
        if vectors == QUAD:
            return linear_tile([T.Bind(source[run(at + offset, self.width)]) for offset in offsets], self.order)
        places = [[T.Bind(at + offset + v * self.lanes) for offset in offsets] for v in range(vectors)]
        return [linear([T.Bind(source[run(place, self.lanes)]) for place in four], self.order) for four in places]

    def _to_panel(self, vector, v: int, to) -> None:
        if self.in_parts or self.strips.lanes or self.width == PART:
            size = QUAD * self.lanes
            T.buffer_store(self.panel, vector, [run(to + v * size, size)])
            return
        for part in range(self.width // PART):
            T.buffer_store(
                self.panel, every(vector, part * PART, 1, PART), [run(to + (PART * part + QUAD * v) * QUAD, PART)]
            )

    def _sub_row(self, pixels: Callable, image, place, begin, count, rows: Rows) -> None:
        s = self.strips
        channel = T.Bind(rows.block * self.n + rows.first)
        stored = min(self.c["rows"], self.n - rows.first) if isinstance(rows.first, int) else rows.count
        # words of the block rows before, of the sub-rows before
        words = T.Bind((begin * self.n + rows.first * count) * self.taps)
        sub = T.Bind(rows.block * self.subs + rows.first // self.c["rows"])
        planes = [T.Bind(self.epilogue.plane(image, channel + r)) for r in range(rows.count)]
        given = partial(self._tile, pixels, channel, words, stored, count, sub, planes, place)
        with T.serial(0, s.tiles) as i:
            given(T.Bind(s.tile(i)), s.vectors)
        if s.left:
            given(s.tiles * s.width, s.left)
        if s.rows:
            self._compact(channel, planes, place)

    def _tile(
        self, pixels: Callable, channel, words, stored: int, count, sub, planes: list, place, pixel, vectors: int
    ) -> None:
        """Sums of ``vectors`` vectors from ``pixel`` on, a row for each of ``planes``, and what becomes of them."""
        s, rows = self.strips, len(planes)
        acc = self._sum(partial(pixels, vectors), channel, words, stored, count, pixel, rows, vectors)
        if self.dot.paired:
            self._add_rest(acc, sub, pixel, rows, vectors)
        width = vectors * self.lanes
        for r in range(rows):
            sums = [acc[self._at(r * vectors + v)] for v in range(vectors)]
            in_parts = self.in_parts and vectors == QUAD
            if s.rows and not self.narrow:
                whole = in_order(sums, width) if in_parts else side_by_side(sums, self.lanes)
                T.buffer_store(self.sums, whole, [run(r * s.room + pixel, width)])
                continue
            steps = self.epilogue.steps(channel + r)
            at, to = (r * s.room + pixel, self.sums) if s.rows else (planes[r] + place + pixel, None)
            if in_parts and self.dot.narrow and self.p.y.quantised:
                self.epilogue.store_narrowed(sums, steps, at, width, self.dot, to)
            else:
                whole = in_order(sums, width) if in_parts else side_by_side(sums, self.lanes)
                self.epilogue.store(whole, steps, at, width, to)

    def _at(self, vector: int):
        return run(vector * self.lanes, self.lanes)

    def _sum(self, pixels: Callable, channel, words, stored: int, count, pixel, rows: int, vectors: int):
        size = rows * vectors * self.lanes
        acc = T.alloc_buffer((size,), "int32", scope="local", annotations=REGISTERS)
        for r in range(rows):
            start = T.Bind(T.broadcast(self.epilogue.start[channel + r], self.lanes))
            for v in range(vectors):
                T.buffer_store(acc, start, [self._at(r * vectors + v)])
        taps, width = self.taps, self.p.kernel[1]
        s = self.strips
        rows_at = self._rows_of_taps()
        with T.serial(0, count) as quad:
            base = T.Bind((quad * s.phases * s.region + pixel) * QUAD)
            bases = [T.Bind(base + at) for at in rows_at]
            word = T.Bind(words + quad * taps * stored)
            self._prefetch(word, taps * stored)

            def multiply(place: tuple, tap) -> None:
                phase, offset = place
                if bases:
                    row = tap // width
                    read = self._from_panel(bases[row] + (offset - s.place(row * width)[1]) * QUAD, vectors)
                elif self.through_panel:
                    read = self._from_panel(base + (phase * s.region + offset) * QUAD, vectors)
                else:
                    read = pixels(quad, phase * s.planes.plane + offset + pixel)
                self._multiply(acc, read, self.given.data, word + tap * stored, rows)

            if taps <= MAX_UNROLLED_TAPS:
                for tap in range(taps):
                    multiply(s.place(tap), tap)
            else:
                with T.serial(0, self.p.kernel[0]) as row:
                    for col in range(width):
                        multiply(s.planes.place(row, col), row * width + col)
        return acc

    def _rows_of_taps(self) -> list:
        """Bytes from a pixel of the panel to where each row of the kernel reads: in registers where a load's address
        has room for small numbers alone, since LLVM adds larger ones up again for every load. indptr[0] is 0, which
        it does not know.
        """
        p, s = self.p, self.strips
        if not (self.dot.by_element and self.through_panel and s.phases == 1 and 1 < self.taps <= MAX_UNROLLED_TAPS):
            return []
        reach = [s.place(row * p.kernel[1])[1] * QUAD for row in range(p.kernel[0])]
        return [T.Bind(T.shift_left(T.int32(bytes_), self.given.indptr[0])) for bytes_ in reach]

    def _prefetch(self, word, count: int) -> None:
        """The weights some quads on: no prefetcher keeps up with lists as short as these."""
        for line in range(0, count, LINE):
            prefetch(self.given.data[word + AHEAD + line])

    def _add_rest(self, acc, sub, pixel, rows: int, vectors: int) -> None:
        s, taps = self.strips, self.taps
        with T.serial(self.given.rest_indptr[sub], self.given.rest_indptr[sub + 1]) as i:
            quad, tap = T.Bind(self.given.rest_at[i] // taps), T.Bind(self.given.rest_at[i] % taps)
            phase, offset = s.place(tap)
            place = T.Bind(((quad * s.phases + phase) * s.region + offset + pixel) * QUAD)
            self._multiply(acc, self._from_panel(place, vectors), self.given.rest, i * self.c["rows"], rows)

    def _from_panel(self, at, vectors: int) -> list:
        """Vectors of pixels from byte ``at``."""
        size = QUAD * self.lanes
        return [T.Bind(self.panel[run(at + v * size, size)]) for v in range(vectors)]

    def _multiply(self, acc, pixels: list, data, word, rows: int) -> None:
        """One tap of a quad: its pixels by a word for each row."""
        size = QUAD * self.lanes
        # where instructions multiply by an element of a vector, the rows' words are one load
        words = T.Bind(data[run(word, rows)]) if self.dot.by_element and rows > 1 else None
        for r in range(rows):
            one = data[word + r] if words is None else every(words, r, 1, 1)
            weights = T.Bind(T.reinterpret(f"int8x{size}", T.broadcast(one, self.lanes)))
            for v, pixel in enumerate(pixels):
                place = self._at(r * len(pixels) + v)
                T.buffer_store(acc, self.dot.add(acc[place], pixel, weights, size), [place])

    def _compact(self, channel, planes: list, row) -> None:
        """Sums of a strip's rows, at the copies' pitch, into the output."""
        p, pitch = self.p, out_planes(self.p)[2]
        for plane in planes if not p.y.quantised else ():  # behind the pixels every float is to be finite
            for i in range(p.out_height * p.out_width, pitch):
                T.buffer_store(self.epilogue.y, T.float32(0), [plane + i])
        s, width = self.strips, self.p.out_width
        for r, plane in enumerate(planes):
            steps = self.epilogue.steps(channel + r)
            with T.serial(0, s.rows) as i:
                for begin, lanes, offsets in groups(width, self.width):
                    for x in (begin + offset for offset in offsets):
                        found = self.sums[run(r * s.room + i * s.planes.pitch + x, lanes)]
                        at = plane + (row + i) * width + x
                        if self.narrow:
                            T.buffer_store(self.epilogue.y, found, [run(at, lanes)])
                        else:
                            self.epilogue.store(found, steps, at, lanes)


def prim_func(p: Problem, c: Config, target: Target, n: int) -> tvm.tirx.PrimFunc:
    """(x, data, channels, indptr, start, multiplier, bias, numbers, zero, [residual], y)."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        Function(p, c, n, machine_of(target)).emit(target)
    return builder.get()
