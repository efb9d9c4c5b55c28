"""Implicit matrix product on tensor cores over gathered channels: the tile program of bsr_mma and dense_mma.

    for block row, tile of pixels:                                # one CTA each, or ``repeat`` rows in turn
        for chunk of the block row's list of entries:             # ``stages`` of them in flight, by cp.async
            image[chunk, pixels]  = x[entry's channel, pixels shifted by its tap], zeros outside
            weight[chunk, filters] = data[chunk]                  # already in the order of the registers
            sums[filters, pixels] += weight.T @ image             # mma.sync, float32
        y = activation(sums + bias + residual)                    # through shared memory: whole vectors to y

Where lists are long and CTAs few, ``slices`` sets of warps share a chunk's entries and add their sums at the end.
Single numbers of 2 bytes are too small for asynchronous copies and go through registers. A warp has ``warp_rows``
filters and ``warp_pixels`` pixels of the tile; its image fragments come by ldmatrix.trans (f16) or plain loads (tf32).
Rows of the image in shared memory are longer than the tile by one vector (two in tf32), so that the rows of a fragment
lie in different banks.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.fragments import COLUMNS, F16, LANES, ROWS
from kerf.kernels.cuda.emit.pipeline import Pipelined, drain
from kerf.kernels.cuda.emit.stage import Tile, room
from kerf.kernels.cuda.emit.store import Staging, emit_store, ptx, resident
from kerf.kernels.cuda.emit.window import Window, flat
from kerf.kernels.cuda.layout import in_rows, out_rows
from kerf.kernels.problem import Problem

OUTSIDE = -1  # where an entry has no number for a pixel


def prim_func(p: Problem, c: Config, rows: int) -> tvm.tirx.PrimFunc:
    """(x, data, offsets, [taps], starts, bias, [residual], y)"""
    tile = Tile.of(p, c, rows)
    block_rows = -(-p.out_channels // rows)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        build = _Program(p, tile, block_rows, room(p, tile.chunk, rows))
        tiles = -(-out_rows(p)[1] // tile.pixels)
        with (
            T.launch_thread("blockIdx.x", -(-block_rows // tile.repeat)) as block,
            T.launch_thread("blockIdx.y", tiles) as at,
            T.launch_thread("threadIdx.x", tile.threads) as thread,
            resident(tile.threads, tile.registers),
        ):
            build.emit(block, at, thread)
    return builder.get()


class _Program(Pipelined):
    """The function being built."""

    def __init__(self, p: Problem, tile: Tile, block_rows: int, chunks: int):
        self.p, self.tile, self.op = p, tile, tile.op
        self.block_rows, self.chunks, self.stages = block_rows, chunks, tile.stages
        dtype = self.op.dtype
        self.x = T.arg("x", T.buffer(in_rows(p), dtype))
        self.data = T.arg("data", T.buffer((chunks, tile.weight), dtype))
        self.offsets = T.arg("offsets", T.buffer((chunks * tile.chunk,), "int32"))
        self.taps = T.arg("taps", T.buffer((chunks * tile.chunk,), "int32")) if gather.bounded(p) else None
        self.starts = T.arg("starts", T.buffer((block_rows + 1,), "int32"))
        self.bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        self.residual = T.arg("residual", T.buffer(out_rows(p), dtype)) if p.residual else None
        self.y = T.arg("y", T.buffer(out_rows(p), dtype))
        self.flat = flat(p, self.x, dtype)

    def emit(self, block, at, thread) -> None:
        tile = self.tile
        self.thread, self.first_pixel = thread, at * tile.pixels
        self.warp, self.lane = T.Bind(thread // LANES), T.Bind(thread % LANES)
        self.slice, part = 0, self.warp
        if tile.slices > 1:
            self.slice, part = T.Bind(self.warp // tile.slice_warps), T.Bind(self.warp % tile.slice_warps)
        down = tile.rows // tile.warp_rows
        self.warp_row = part % down * tile.warp_rows if down > 1 else 0
        self.warp_pixel = part // down * tile.warp_pixels
        shared = T.alloc_buffer((tile.shared_bytes,), "uint8", scope="shared.dyn")
        numbers = tile.shared_bytes // self.op.bytes
        self.shared = T.decl_buffer((numbers,), self.op.dtype, data=shared.data, scope="shared.dyn")
        self.words = T.decl_buffer((tile.shared_bytes // 4,), "uint32", data=shared.data, scope="shared.dyn")
        self.floats = T.decl_buffer((tile.shared_bytes // 4,), "float32", data=shared.data, scope="shared.dyn")
        self.across, self.down = tile.warp_pixels // COLUMNS, tile.warp_rows // ROWS
        self.sums = T.alloc_buffer((self.down * self.across * 4,), "float32", scope="local")
        self.column = T.Bind(thread % tile.columns * tile.copy)
        self.places = T.alloc_buffer((tile.copies,), "int32", scope="local")
        self.bits: Any = None
        self.loaded: Any = None
        if tile.loads:  # as bits: a store of PTX takes no float16
            self.bits = T.decl_buffer(self.flat.shape, f"uint{8 * self.op.bytes}", data=self.x.data)
            self.loaded = T.alloc_buffer((tile.copies,), self.bits.dtype, scope="local")
        self.window = Window(self.p, T.Bind(self.first_pixel + self.column))
        rows = self.block_rows
        first = T.Bind(block * tile.repeat)
        begin = T.Bind(self.starts[first])
        count = T.Bind(self.starts[T.min(first + tile.repeat, rows)] - begin)
        self.fill(begin, count)
        with T.serial(0, tile.repeat) as turn:
            row = T.Bind(first + turn)
            mine = [T.Bind(self.starts[T.min(row + k, rows)] - begin) for k in range(2)]
            for i in range(self.down * self.across * 4):
                T.buffer_store(self.sums, T.float32(0), [i])
            with T.serial(*mine) as i:
                self.advance(begin, count, i)
            if tile.repeat == 1:  # the sums are staged where the image was
                drain()
            self._finish(row)
        ptx("cp.async.wait_group", 0)

    def _locate(self, chunk) -> None:
        """Where this thread's copies of a chunk come from, OUTSIDE of the image; harmless behind the last chunk."""
        tile = self.tile
        known = T.Bind(T.min(chunk, self.chunks - 1) * tile.chunk + self.thread // tile.columns)
        for i in range(tile.copies):
            entry = known + i * tile.at_once
            valid = self.window.valid(self.taps[entry] if self.taps is not None else 0)
            place = (self.window.base + self.offsets[entry] - OUTSIDE) * valid + OUTSIDE  # a choice would be a branch
            T.buffer_store(self.places, place, [i])

    def _fetch(self, chunk, stage) -> None:
        """Start the copies of the located chunk into a stage."""
        tile, op = self.tile, self.op
        weight = tile.stages * tile.image + stage * tile.weight
        for i in range(tile.copies):
            place, valid = self.places[i], self.places[i] > OUTSIDE
            if tile.loads:
                value = tirx.if_then_else(valid, self.bits[place], tirx.const(0, self.bits.dtype))
                T.buffer_store(self.loaded, value, [i])
                continue
            size = tile.copy * op.bytes
            how = tile.cache if size == 16 else "ca"  # "cg", past the first-level cache, takes 16 bytes only
            # an address outside x is never formed
            to, source = self.shared.ptr_to([self._copied(stage, i)]), self.flat.ptr_to([T.max(place, 0)])
            filled = tirx.Select(valid, tirx.const(size, "uint32"), tirx.const(0, "uint32"))
            ptx(f"cp.async.{how}.shared.global", to, source, size, filled)
        vectors = tile.weight // op.vector
        for j in range(-(-vectors // tile.threads)):
            vector = self.thread + j * tile.threads
            whole = (j + 1) * tile.threads <= vectors
            with T.If(True if whole else vector < vectors), T.Then():
                to = self.shared.ptr_to([weight + vector * op.vector])
                ptx("cp.async.cg.shared.global", to, self.data.ptr_to([chunk, vector * op.vector]), 16)

    def _settle(self, stage) -> None:
        # by an instruction that TVM does not look into: it would have all threads wait before and behind it
        for i in range(self.tile.copies if self.tile.loads else 0):
            ptx(f"st.shared.u{8 * self.op.bytes}", self.shared.ptr_to([self._copied(stage, i)]), self.loaded[i])

    def _copied(self, stage, i: int):
        """Where in shared memory this thread's i-th copy lies."""
        tile = self.tile
        entry = self.thread // tile.columns + i * tile.at_once
        return stage * tile.image + entry * tile.row + self.column

    def _multiply(self, stage) -> None:
        tile, op = self.tile, self.op
        image = T.Bind(stage * tile.image)
        weight = T.Bind((tile.stages * tile.image + stage * tile.weight) // op.per_register)  # in words
        a = T.alloc_buffer((self.down * 4,), "uint32", scope="local")
        b = T.alloc_buffer((self.across * 2,), "uint32", scope="local")
        for own in range(tile.steps):
            step = self.slice * tile.steps + own
            for m in range(self.down):
                block = step * (tile.rows // ROWS) + self.warp_row // ROWS + m
                source = weight + (block * LANES + self.lane) * 4
                T.buffer_store(a, self.words[T.ramp(source, 1, 4)], [T.ramp(4 * m, 1, 4)])
            origin = image + step * op.depth * tile.row + self.warp_pixel
            (self._columns_f16 if op is F16 else self._columns_tf32)(b, origin)
            for m in range(self.down):
                for n in range(self.across):
                    sums = [self.sums[(m * self.across + n) * 4 + k] for k in range(4)]
                    ptx(op.ptx, *sums, *(a[4 * m + k] for k in range(4)), b[2 * n], b[2 * n + 1], *sums)

    def _columns_f16(self, b, origin) -> None:
        """Pixels of one instruction's depth: matrices of 8 entries x 8 pixels, four at once."""
        # lanes 0-7 name the rows of the first matrix, 8-15 (entries 8-15) the second, 16-31 those of the next 8 pixels
        place = origin + self.lane % ROWS * self.tile.row + self.lane // ROWS * COLUMNS
        for n in range(0, self.across, 2):
            registers = [b[2 * n + k] for k in range(4)]
            to = self.shared.ptr_to([place + n * COLUMNS])
            ptx("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", *registers, to)

    def _columns_tf32(self, b, origin) -> None:
        place = origin + self.lane % 4 * self.tile.row + self.lane // 4
        for n in range(self.across):
            for k in range(2):
                value = self.shared[place + 4 * k * self.tile.row + n * COLUMNS]
                ptx("cvt.rna.tf32.f32", b[2 * n + k], value)

    def _finish(self, block_row) -> None:
        """Sums, 16 filters at a time, to y."""
        p, tile = self.p, self.tile
        behind = tile.held // 4 if tile.repeat > 1 else 0
        staging = Staging(tile.warp_pixels, self.floats, behind, self.warp, self.lane, tile.slices, tile.slice_warps)
        for m in range(self.down):
            staging.store(self.sums, m * self.across * 4)
            staging.wait()
            with staging.vectors() as (row, column):
                channel = T.Bind(block_row * tile.rows + self.warp_row + m * ROWS + row)
                pixel = T.Bind(self.first_pixel + self.warp_pixel + column)
                with T.If(tirx.all(channel < p.out_channels, pixel < out_rows(p)[1])), T.Then():
                    emit_store(p, self.y, self.residual, channel, pixel, staging.load(row, column), self.bias[channel])
            if m + 1 < self.down or tile.repeat > 1:
                staging.wait()
