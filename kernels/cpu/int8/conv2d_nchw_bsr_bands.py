"""conv2d_nchw_bsr_bands: 1xN block-sparse 1 x 1 convolution of bytes, whose block rows share quads of channels.

A block row of four outputs reads quads of channels that no other one reads, and to put four channels side by side takes
as many instructions as NEON's products of them. So a few block rows, a band, have a list of quads together, each of
channels that mostly the same of these rows read (kerf's own; the covering is a greedy one):

    for strip of tiles of pixels, for band of block rows:
        panel[tile, quad, pixel, 4] = the band's channels, four and four side by side       # once for all its rows
        for sub-row of ``rows`` outputs, for tile:
            acc[rows, 4 vectors] = start                                                    # registers
            for quad of the panel that the row uses: acc[r, v] += four products of each pixel
            y = epilogue(acc)

A row multiplies by 0 what it does not read of a quad that it uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.sharing import splits
from kerf.kernels.cpu.int8 import estimate
from kerf.kernels.cpu.int8.dot import DOTS, QUAD, dots, in_order, quads_of
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.int8.strips import geometry
from kerf.kernels.cpu.layout import LINE, in_planes
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import every, prefetch, run

name = "conv2d_nchw_bsr_bands"
PIXELS = 16  # of a tile: bytes of a vector
TILE = PIXELS * QUAD  # bytes of a tile's quad
TURN = 4  # quads of one turn of the loop: of four outputs they have a cache line of weights
AHEAD = 16 * LINE  # words of weights, 1 KiB
BANDS, MOST_ROWS = (2, 4, 8), 32  # block rows of a band, outputs of one
DRAWN = 256  # channels of the random layer that says how well rows share; with more they share better, but little


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses_convolution(p):
        return reason
    if not p.n:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; block rows share quads of all channels"
    if p.taps > 1 or geometry(p).copied:
        return "reads 1 x 1 kernels' pixels where they lie"
    dot, _ = dots(machine_of(target))
    if not DOTS[dot].by_element:
        return f"products by {dot}; pays where side by side costs as much as products, as NEON's"
    return None if _bands(p) else f"{p.out_channels} outputs in blocks of {p.n}: no two rows to share"


def _bands(p: Problem) -> list[int]:
    """Numbers of block rows worth trying."""
    return [m for m in BANDS if m * p.n <= min(MOST_ROWS, p.out_channels)]


def configs(p: Problem, target: Target) -> Sequence[Config]:
    machine = machine_of(target)
    found: list[tuple[float, Config]] = []
    rows, tiles = math.gcd(p.n, 4), geometry(p).channel // PIXELS
    block_rows = -(-p.out_channels // p.n)
    reads = min(p.in_channels, -(-p.nnzb // block_rows))
    for band in _bands(p):
        quads, uses = shared(p.in_channels, reads, band)
        for strip in (s for s in (1, 2, 4) if s <= tiles):
            c: Config = {"dot": dots(machine)[0], "bytes": PIXELS, "rows": rows, "strip": strip, "band": band}
            # instructions of a tile and a block row: four channels side by side; products; sums begun and stored
            fill = quads / band * (21 + 12 / strip)
            sums = p.n // rows * (uses * (QUAD * rows + 5) + 12 + 10 * rows)
            far = 1.0 if strip * quads * TILE <= machine.l1 * 0.75 else 1.3
            strips = -(-tiles // strip)
            for split in splits(target, strips):
                found.append(((fill + sums) * far * strips * strip, {**c, **split}))
    return [c for _, c in sorted(found, key=lambda f: f[0])]


@cache
def shared(channels: int, reads: int, band: int) -> tuple[float, float]:
    """(quads of a band, quads that a block row uses), of rows that read ``reads`` channels drawn at random."""
    few = min(channels, DRAWN)
    rng, each = np.random.default_rng(0), -(-reads * few // channels)
    kept = np.stack([rng.permutation(few) < each for _ in range(band)], axis=1)
    found = covering(kept)
    uses = sum(kept[quad].any(axis=0).sum() for quad in found) / band
    return len(found) * channels / few, float(uses) * channels / few


def covering(kept: np.ndarray) -> list[np.ndarray]:
    """Quads, or less, of channels (quad,), so that rows which read one channel of a quad mostly read all.

    ``kept`` (channels, rows): who reads what. Begins with the channel that most rows read, and takes to it, one after
    the other, the channel with which the fewest zeros are multiplied. Channels that no row reads are in none.
    """
    left, counts, found = np.asarray(kept.any(axis=1)), kept.sum(axis=1), []
    while left.any():
        first = int(np.argmax(np.where(left, counts, -1)))
        quad, union = [first], kept[first].copy()
        left[first] = False
        while len(quad) < QUAD and left.any():
            others = np.flatnonzero(left)
            zeros = (union & ~kept[others]).sum(axis=1) + len(quad) * (kept[others] & ~union).sum(axis=1)
            best = int(others[np.argmin(zeros)])
            quad.append(best)
            union |= kept[best]
            left[best] = False
        found.append(np.array(quad))
    return found


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    """data (uses * rows,) int32, four int8 weights each: for every sub-row of ``rows`` outputs, for every quad that it
    uses, a word for each output. channels (4 quads,) uint16, indptr (bands + 1,) int32, in quads. uses (uses,) int32:
    where the quad's pixels lie in a tile of the panel, in bytes; of the sub-rows' uses_indptr (sub-rows + 1,).
    """
    n, rows, band, block_rows = p.n, c["rows"], c["band"], len(w.indptr) - 1
    dense = np.zeros((block_rows, p.in_channels, n), np.int8)
    dense[np.repeat(np.arange(block_rows), np.diff(w.indptr)), w.indices] = w.data.reshape(-1, n)
    data, channels, indptr, uses, counts = [], [], [0], [], [0]
    for begin in range(0, block_rows, band):
        of_band = dense[begin : begin + band]
        found = covering(np.asarray(of_band.any(axis=2)).T)
        # a quad of fewer channels names its first again, with weights of 0
        listed = np.array([np.pad(q, (0, QUAD - len(q)), constant_values=q[0]) for q in found], int).reshape(-1, QUAD)
        real = np.array([np.arange(QUAD) < len(q) for q in found], bool).reshape(-1, QUAD, 1)
        channels.append(listed.reshape(-1))
        indptr.append(indptr[-1] + len(found))
        for block in of_band:
            words = block[listed] * real  # (quad, channel, output)
            used = np.flatnonzero(words.any(axis=(1, 2)))
            for r in range(0, n, rows):
                data.append(words[used, :, r : r + rows].transpose(0, 2, 1).reshape(-1))
                uses.append(used * TILE)
                counts.append(counts[-1] + len(used))
    return {
        "data": _one(data, np.int8, QUAD).view(np.int32),
        "channels": _one(channels, np.uint16, 1),
        "indptr": np.array(indptr, np.int32),
        "uses": _one(uses, np.int32, 1),
        "uses_indptr": np.array(counts, np.int32),
    }


def _one(parts: list[np.ndarray], dtype: type, least: int) -> np.ndarray:
    """One after the other; a tensor of zero bytes has no address, so ``least`` entries."""
    whole = np.concatenate(parts) if parts else np.zeros(0)
    return np.ascontiguousarray((whole if whole.size else np.zeros(least)).astype(dtype))


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    """(x, data, channels, indptr, uses, uses_indptr, start, multiplier, bias, numbers, zero, [residual], y)."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        Function(p, c).emit()
    return builder.get()


class Function:
    """The code of one function."""

    def __init__(self, p: Problem, c: Config):
        self.p, self.c, self.dot, self.lanes = p, c, DOTS[c["dot"]], c["bytes"] // QUAD
        self.channel = geometry(p).channel
        self.tiles, self.strip = self.channel // PIXELS, min(c["strip"], self.channel // PIXELS)
        self.strips = -(-self.tiles // self.strip)
        self.height = c["band"] * p.n // c["rows"]  # sub-rows of a band
        self.bands = -(-p.out_channels // (c["band"] * p.n))
        self.most = -(-p.in_channels // QUAD)  # quads of a band: a channel is in one
        words, listed, uses = T.int32(), T.int32(), T.int32()
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        self.data = T.arg("data", T.buffer((words,), "int32"))
        self.channels = T.arg("channels", T.buffer((listed,), "uint16"))
        self.indptr = T.arg("indptr", T.buffer((self.bands + 1,), "int32"))
        self.uses = T.arg("uses", T.buffer((uses,), "int32"))
        sub_rows = -(-p.out_channels // p.n) * p.n // c["rows"]
        self.uses_indptr = T.arg("uses_indptr", T.buffer((sub_rows + 1,), "int32"))
        self.epilogue = Epilogue(p)
        self.epilogue.declare_images()
        self.x = T.decl_buffer((math.prod(in_planes(p)),), "uint8", data=x.data)

    def emit(self) -> None:
        parts = self.c.get("parts", 1)
        with T.serial(0, self.p.batch) as image:
            if parts == 1:
                self._share(image, (0, self.strips), (0, self.bands))
                return
            with T.parallel(0, parts) as k:
                by_pixels = self.c["split"] == "pixels"
                total = self.strips if by_pixels else self.bands
                own = T.Bind(k * total // parts), T.Bind((k + 1) * total // parts)
                self._share(image, *((own, (0, self.bands)) if by_pixels else ((0, self.strips), own)))

    def _share(self, image, strips: tuple, bands: tuple) -> None:
        self.panel = T.alloc_buffer((self.strip * self.most * TILE,), "int8")
        whole, rest = divmod(self.p.out_channels, self.c["rows"])
        with T.serial(0, strips[1] - strips[0]) as i:
            first = T.Bind(T.min((strips[0] + i) * self.strip, self.tiles - self.strip) * PIXELS)
            with T.serial(0, bands[1] - bands[0]) as j:
                band = T.Bind(bands[0] + j)
                self._fill(image * (self.p.in_channels * self.channel) + first, band)
                with T.serial(0, T.min(self.height, whole - band * self.height)) as r:
                    self._sub_row(image, first, T.Bind(band * self.height + r), self.c["rows"])
                if rest:
                    with T.If(band == self.bands - 1), T.Then():
                        self._sub_row(image, first, whole, rest)

    def _fill(self, at, band) -> None:
        begin = T.Bind(self.indptr[band])
        with T.serial(0, self.indptr[band + 1] - begin) as quad:
            four = [self.channels[(begin + quad) * QUAD + k] for k in range(QUAD)]
            places = [T.Bind(at + T.cast(channel, "int32") * self.channel) for channel in four]
            with T.serial(0, self.strip) as tile:
                given = [T.Bind(self.x[run(place + tile * PIXELS, PIXELS)]) for place in places]
                to = T.Bind((tile * self.most + quad) * TILE)
                for v, vector in enumerate(quads_of(given, PIXELS, self.dot.signed)):
                    T.buffer_store(self.panel, vector, [run(to + v * PIXELS, PIXELS)])

    def _sub_row(self, image, first, sub, outputs: int) -> None:
        rows, channel = self.c["rows"], T.Bind(sub * self.c["rows"])
        begin, end = T.Bind(self.uses_indptr[sub]), T.Bind(self.uses_indptr[sub + 1])
        whole = T.Bind(begin + (end - begin) // TURN * TURN)
        with T.serial(0, self.strip) as tile:
            acc = T.alloc_buffer((outputs * PIXELS,), "int32", scope="local", annotations=REGISTERS)
            for r in range(outputs):
                start = T.Bind(T.broadcast(self.epilogue.start[channel + r], self.lanes))
                for v in range(QUAD):
                    T.buffer_store(acc, start, [self._at(r, v)])
            of_tile = T.Bind(T.cast(tile, "int64") * (self.most * TILE))  # or LLVM adds four places as a vector
            with T.serial(0, (whole - begin) // TURN) as turn:
                use = T.Bind(begin + turn * TURN)
                for line in range(0, TURN * rows, LINE):
                    prefetch(self.data[use * rows + AHEAD + line])
                for k in range(TURN):
                    self._multiply(acc, of_tile, use + k, outputs)
            with T.serial(0, end - whole) as use:
                self._multiply(acc, of_tile, whole + use, outputs)
            for r in range(outputs):
                self._store(
                    [acc[self._at(r, v)] for v in range(QUAD)],
                    channel + r,
                    self.epilogue.plane(image, channel + r) + first + tile * PIXELS,
                )

    def _store(self, sums: list, channel, at) -> None:
        steps = self.epilogue.steps(channel)
        if self.dot.narrow and self.p.y.quantised:
            self.epilogue.store_narrowed(sums, steps, at, PIXELS, self.dot)
        else:
            self.epilogue.store(in_order(sums, PIXELS), steps, at, PIXELS)

    def _at(self, r: int, v: int):
        return run((r * QUAD + v) * self.lanes, self.lanes)

    def _multiply(self, acc, tile, use, outputs: int) -> None:
        """A quad's pixels by a word for each output."""
        at = T.Bind(tile + T.cast(self.uses[use], "int64"))
        pixels = [T.Bind(self.panel[run(at + v * PIXELS, PIXELS)]) for v in range(QUAD)]
        word = use * self.c["rows"]
        words: Any = T.Bind(self.data[run(word, self.c["rows"])]) if self.c["rows"] > 1 else None
        for r in range(outputs):
            one = self.data[word] if words is None else every(words, r, 1, 1)
            weights = T.Bind(T.reinterpret(f"int8x{PIXELS}", T.broadcast(one, self.lanes)))
            for v, pixel in enumerate(pixels):
                T.buffer_store(acc, self.dot.add(acc[self._at(r, v)], pixel, weights, PIXELS), [self._at(r, v)])
