"""conv2d_chwn_bsr_halo: block-sparse k x k convolution on tensor cores; channels are gathered once for all their taps.

    for block row, tile of pixels:                                # one CTA each
        for 16 of the channels that the block row kept:           # ``stages`` of them in flight, by cp.async
            image = x[channels, tile and its border], zeros outside
            for tap: sums += weights[tap].T @ image[:, shifted by the tap]          # ldmatrix, mma.sync
        y = activation(sums + bias + residual)

Between the products only addresses differ: taps, pixels and weights of a chunk lie at constant places in a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import halo
from kerf.kernels.cuda.emit.fragments import COLUMNS, F16, LANES, ROWS
from kerf.kernels.cuda.emit.halo import CHUNK, Halo, room
from kerf.kernels.cuda.emit.panel_program import PanelProgram
from kerf.kernels.cuda.emit.pipeline import Pipelined, drain
from kerf.kernels.cuda.emit.store import ptx, resident
from kerf.kernels.cuda.emit.tile_sizes import BUSY, GRID, refuses_blocks, shared_memory
from kerf.kernels.cuda.layout import VECTOR, in_rows
from kerf.kernels.problem import Problem

name = "conv2d_chwn_bsr_halo"
RESIDENT = 384  # threads of a multiprocessor: with all taps unrolled, 128 registers would not do


def refuses(p: Problem, target: Target) -> str | None:
    if reason := refuses_blocks(p):
        return reason
    if p.precision != "f16":
        return f"precision {p.precision}; ldmatrix reads numbers of 16 bits"
    if p.taps == 1:
        return "one tap; there is nothing to read twice"
    if p.batch % VECTOR:
        return f"{p.batch} images; those of a position must fill vectors of {VECTOR}"
    return None if configs(p, target) else "no tile fits into shared memory"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    images = [n for n in (16, 8, 32) if p.batch % n == 0]
    found: list[Config] = []
    for across, pixels, n, wide, stages in product((4, 2, 1), (64, 32), images, (4, 2, 8), (2, 3)):
        c: Config = {"across": across, "warp_pixels": pixels, "images": n, "wide": wide, "stages": stages}
        if across * pixels % (n * wide) or not Halo.of(p, c).fits() or Halo.of(p, c).threads < 64:
            continue
        if prod(Halo.of(p, c).tiles) > GRID:
            continue
        if Halo.of(p, c).shared_bytes <= (shared_memory(target) - 1) * 1024 and p.n * pixels // LANES <= 64:
            found.append(c)
    return sorted(found, key=lambda c: cost(p, target, c))


def cost(p: Problem, target: Target, c: Config) -> float:
    """Relative; a rough guide to what was fastest on an H100 (docs/benchmarks)."""
    tile = Halo.of(p, c)
    inner = tile.plane
    tiles = prod(tile.tiles)
    waste = tiles * tile.pixels / (inner.batch * inner.out[0] * inner.out[1])
    held = min(shared_memory(target) * 1024 // (tile.shared_bytes + 1024), 512 // tile.threads)
    hidden = max(12 * LANES / max(held * tile.threads, 1), 1.0)
    idle = max(BUSY / (tiles * -(-p.out_channels // p.n)), 1.0)
    # numbers through shared memory per multiply-add: copies, and what a warp reads of pixels and weights
    copied = tile.vectors * VECTOR / (tile.pixels * p.taps * p.n) + 1 / tile.pixels
    copied *= 1 if tile.images > VECTOR else 2  # half of every sector of 32 bytes
    return waste * hidden * idle * (2 * copied + 1 / p.n + 1 / tile.warp_pixels + 1 / 32)


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    return halo.pack(p, w)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    """(x, data, channels, starts, bias, [residual], y)"""
    tile = Halo.of(p, c)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        build = _Program(p, tile)
        with (
            T.launch_thread("blockIdx.x", -(-p.out_channels // p.n)) as block,
            T.launch_thread("blockIdx.y", prod(tile.tiles)) as at,
            T.launch_thread("threadIdx.x", tile.threads) as thread,
            resident(tile.threads, p.n * tile.warp_pixels // LANES, RESIDENT),
        ):
            build.emit(block, at, thread)
    return builder.get()


class _Program(PanelProgram, Pipelined):
    """The function being built."""

    panel: Halo

    def __init__(self, p: Problem, tile: Halo):
        super().__init__(p, tile)
        self.chunks, self.stages = room(p), tile.stages
        self.x = T.arg("x", T.buffer(in_rows(p), F16.dtype))
        self.data = T.arg("data", T.buffer((self.chunks, tile.weight), F16.dtype))
        self.channels = T.arg("channels", T.buffer((self.chunks * CHUNK,), "int32"))
        self.starts = T.arg("starts", T.buffer((-(-p.out_channels // p.n) + 1,), "int32"))
        self.end_args()

    def emit(self, block, at, thread) -> None:
        tile = self.panel
        self.begin(block, at, thread)
        self.words = T.decl_buffer((tile.shared_bytes // 4,), "uint32", data=self.shared.data, scope="shared.dyn")
        self.a = T.alloc_buffer((self.down * 4,), "uint32", scope="local")
        self.b = T.alloc_buffer((self.across * 2,), "uint32", scope="local")
        self.places = T.alloc_buffer((-(-CHUNK // self.at_once),), "int32", scope="local")
        begin = T.Bind(self.starts[block])
        count = T.Bind(self.starts[block + 1] - begin)
        self.fill(begin, count)
        with T.serial(0, count) as i:
            self.advance(begin, count, i)
        drain()
        self.finish()

    def _locate(self, chunk) -> None:
        """Where the channels begin that this thread copies. Chunks behind the last are harmless."""
        first = T.Bind(T.min(chunk, self.chunks - 1) * CHUNK + self.turn)
        for i in range(-(-CHUNK // self.at_once)):
            entry = T.min(first + i * self.at_once, self.chunks * CHUNK - 1)
            T.buffer_store(self.places, self.channels[entry], [i])

    def _fetch(self, chunk, stage) -> None:
        """Start the copies of the located chunk into a stage."""
        tile = self.panel
        image, weight = stage * tile.stage, tile.stages * tile.stage + stage * tile.weight
        rounds = -(-CHUNK // self.at_once)
        for vector, busy, valid, place in self.mine:
            for i in range(rounds):
                channel = self.turn + i * self.at_once
                exists = [busy] if (i + 1) * self.at_once <= CHUNK else [busy, channel < CHUNK]
                with T.If(tirx.all(*exists)), T.Then():
                    to = self.shared.ptr_to([image + channel * tile.row + vector * VECTOR])
                    source = self.flat.ptr_to([(place + self.places[i]) * valid])  # never outside x
                    ptx("cp.async.cg.shared.global", to, source, 16, T.cast(valid * 16, "uint32"))
        vectors = tile.weight // VECTOR
        for j in range(-(-vectors // tile.threads)):
            vector = self.thread + j * tile.threads
            with T.If(True if (j + 1) * tile.threads <= vectors else vector < vectors), T.Then():
                to = self.shared.ptr_to([weight + vector * VECTOR])
                ptx("cp.async.cg.shared.global", to, self.data.ptr_to([chunk, vector * VECTOR]), 16)

    def _multiply(self, stage) -> None:
        tile, a, b = self.panel, self.a, self.b
        base = T.Bind(stage * tile.stage + self.first + self.lane % ROWS * tile.row)
        weight = T.Bind((tile.stages * tile.stage + stage * tile.weight) // 2 + self.lane * 4)
        for tap in range(tile.taps):
            for m in range(self.down):
                source = weight + (tap * self.down + m) * LANES * 4
                T.buffer_store(a, self.words[T.ramp(source, 1, 4)], [T.ramp(4 * m, 1, 4)])
            for n in range(0, self.across, 2):
                to = self.shared.ptr_to([base + tile.tap(tap) + tile.column(n)])
                ptx("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", *(b[2 * n + k] for k in range(4)), to)
            self.products(a, b)


assert COLUMNS == VECTOR  # a vector is a row of a matrix
