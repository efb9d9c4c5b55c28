"""dense_nc_bsr_tokens: a matrix product on 1xN blocks for many rows of x, the tokens of a transformer; vectors run
across tokens.

A tile of tokens is transposed into a panel, where an input channel's tokens lie side by side. Over it a block costs what
it costs a 1x1 convolution: ``vectors`` loads, N broadcast weights, N * ``vectors`` multiply-adds. Sums of as many block
rows as fill vectors are transposed back on their way into y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.dense_nc_dense_columns import is_matrix_product
from kerf.kernels.cpu.emit.transpose import transposed
from kerf.kernels.cpu.layout import LINE
from kerf.kernels.cpu.machine import machine_of, parallel_loop, threads
from kerf.kernels.epilogue import ACTIVATION
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem, computes
from kerf.kernels.vector import even_tiles, every, prefetch, run, splat

name = "dense_nc_bsr_tokens"
FEWEST = 8  # tokens that are worth transposing
AHEAD = 512  # floats of weights that are fetched before their turn


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if not p.n:
        return "weights are dense"
    if not is_matrix_product(p):
        return f"{p.describe()} is no matrix product"
    return f"{p.batch} tokens; vectors run across at least {FEWEST}" if p.batch < FEWEST else None


def configs(p: Problem, target: Target) -> Sequence[Config]:
    """Config "rows": output channels of a register tile; "vectors": of tokens in it."""
    machine = machine_of(target)
    found: list[Config] = []
    for lanes in machine.lanes:
        for most in (4, 6, 8, 3, 2):
            rows = even_tiles(p.n, most)[0][2]
            # beside the sums, the smaller side lies in registers and the other streams through one
            fitting = [v for v in range(1, 13) if rows * v + min(rows, v) + 1 <= machine.registers]
            for vectors in (fitting[-1], fitting[-1] // 2):
                c: Config = {"lanes": lanes, "rows": rows, "vectors": min(vectors, -(-p.batch // lanes))}
                if vectors and c not in found:
                    found.append(c)
    return found


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    """Offsets are in floats of the panel."""
    if w.nnzb == 0:
        return {"data": np.zeros((1, p.n), np.float32), "offsets": np.zeros(1, np.int32), "indptr": w.indptr}
    offsets = (w.indices * (c["lanes"] * c["vectors"])).astype(np.int32)
    return {"data": np.ascontiguousarray(w.data[:, :, 0]), "offsets": offsets, "indptr": w.indptr}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        function = _Function(p, c)
        tiles = even_tiles(-(-p.batch // c["lanes"]), c["vectors"])
        total = sum(count for _, count, _ in tiles)
        shares = min(-(-threads(target) // total), function.groups)  # threads that share a tile
        before = 0
        with parallel_loop(target)(0, total * shares) as job:
            for first, count, vectors in tiles:
                tile = _Tile(function, job % shares, shares, vectors)

                def one(tile=tile, first=first, vectors=vectors, before=before):
                    tile.emit((first + (job // shares - before) * vectors) * c["lanes"])

                _between(job // shares, before, before + count, total, one)
                before += count
    return builder.get()


def _between(i, begin: int, end: int, total: int, body: Callable) -> None:
    """``body`` where begin <= i < end, of ``total``."""
    if (begin, end) == (0, total):
        body()
    else:
        with T.If(i < end if begin == 0 else i >= begin), T.Then():
            body()


class _Function:
    """What the tiles of one function have in common: its arguments, x and y flat."""

    def __init__(self, p: Problem, c: Config):
        self.p, self.lanes, self.rows, self.pitch = p, c["lanes"], c["rows"], c["lanes"] * c["vectors"]
        self.block_rows = -(-p.out_channels // p.n)
        self.together = self.lanes // math.gcd(self.lanes, p.n)  # block rows whose outputs fill vectors
        self.groups = -(-self.block_rows // self.together)
        x = T.arg("x", T.buffer((p.batch, p.in_channels, 1), "float32"))
        self.data = T.arg("data", T.buffer((max(p.nnzb, 1), p.n), "float32"))
        self.offsets = T.arg("offsets", T.buffer((max(p.nnzb, 1),), "int32"))
        self.indptr = T.arg("indptr", T.buffer((self.block_rows + 1,), "int32"))
        self.bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer((p.batch, p.out_channels, 1), "float32")) if p.residual else None
        y = T.arg("y", T.buffer((p.batch, p.out_channels, 1), "float32"))
        self.x = T.decl_buffer((p.batch * p.in_channels,), "float32", data=x.data)
        self.residual: Any = None
        if residual is not None:
            self.residual = T.decl_buffer((p.batch * p.out_channels,), "float32", data=residual.data)
        self.y = T.decl_buffer((p.batch * p.out_channels,), "float32", data=y.data)


class _Tile:
    """``vectors`` of tokens; of the block rows, share number ``share`` of ``shares``."""

    def __init__(self, function: _Function, share, shares: int, vectors: int):
        self.f, self.share, self.shares, self.vectors = function, share, shares, vectors

    def emit(self, first) -> None:
        """From token ``first``."""
        f, p = self.f, self.f.p
        self.first = T.Bind(first)
        self.panel = T.alloc_buffer((p.in_channels * f.pitch,), "float32")
        self.sums = T.alloc_buffer((f.together * p.n * f.pitch,), "float32")
        self._fill_panel()
        whole = p.out_channels // (f.together * p.n)
        begin, end = (T.Bind(part * whole // self.shares) for part in (self.share, self.share + 1))
        with T.serial(0, end - begin) as i:
            group = T.Bind(begin + i)
            self._group(group, f.together, f.together * p.n)
        if rest := p.out_channels - whole * f.together * p.n:
            _between(
                self.share, self.shares - 1, self.shares, self.shares, lambda: self._group(whole, -(-rest // p.n), rest)
            )

    def _token(self, i):
        """The tile's i-th. Behind the last one the last one again: it is computed, and stored, twice."""
        return T.min(self.first + i, self.f.p.batch - 1)

    def _fill_panel(self) -> None:
        f, channels, lanes = self.f, self.f.p.in_channels, self.f.lanes
        for v in range(self.vectors):
            origins = [T.Bind(self._token(v * lanes + i) * channels) for i in range(lanes)]

            def square(k, v=v, origins=origins):
                """Channels k .. k + lanes - 1."""
                rows = [T.Bind(f.x[run(origin + k, lanes)]) for origin in origins]
                for i, column in enumerate(transposed(rows, lanes)):
                    T.buffer_store(self.panel, column, [run((k + i) * f.pitch + v * lanes, lanes)])

            if channels < lanes:
                for k in range(channels):
                    for i, origin in enumerate(origins):
                        T.buffer_store(self.panel, f.x[origin + k], [k * f.pitch + v * lanes + i])
                continue
            with T.serial(0, channels // lanes) as i:
                square(i * lanes)
            if channels % lanes:
                square(channels - lanes)

    def _group(self, group, block_rows: int, outputs: int) -> None:
        """``outputs`` output channels, those of ``block_rows`` block rows."""
        f, p = self.f, self.f.p
        with T.serial(0, block_rows) as i:
            block = T.Bind(group * f.together + i)
            for first, count, rows in even_tiles(p.n, f.rows):
                with T.serial(0, count) as sub:
                    self._sum(block, i, first + sub * rows, rows)
        whole, rest = divmod(outputs, f.lanes)
        origin = T.Bind(group * f.together * p.n)
        for v in range(self.vectors):
            with T.serial(0, whole) as i:
                self._store(origin, i * f.lanes, v, f.lanes)
            if rest:
                self._store(origin, whole * f.lanes, v, rest)

    def _sum(self, block, i, begin, rows: int) -> None:
        """Output channels begin .. begin + rows - 1 of a block row, the group's i-th, into ``sums``."""
        f, p, lanes, vectors = self.f, self.f.p, self.f.lanes, self.vectors
        acc = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="local", annotations=REGISTERS)

        def at(r: int, v: int):
            return run((r * vectors + v) * lanes, lanes)

        for r in range(rows):
            channel = T.min(block * p.n + begin + r, p.out_channels - 1)
            start = T.Bind(splat(f.bias[channel], lanes))
            for v in range(vectors):
                T.buffer_store(acc, start, [at(r, v)])
        with T.serial(f.indptr[block], f.indptr[block + 1]) as j:
            for line in range(0, rows, LINE):
                prefetch(f.data[j + -(-AHEAD // p.n), begin + line])
            offset = T.Bind(f.offsets[j])
            if vectors < rows:
                xs = [T.Bind(self.panel[run(offset + v * lanes, lanes)]) for v in range(vectors)]
                for r in range(rows):
                    w = T.Bind(splat(f.data[j, begin + r], lanes))
                    for v in range(vectors):
                        T.buffer_store(acc, acc[at(r, v)] + w * xs[v], [at(r, v)])
            else:
                ws = [T.Bind(splat(f.data[j, begin + r], lanes)) for r in range(rows)]
                for v in range(vectors):
                    x = T.Bind(self.panel[run(offset + v * lanes, lanes)])
                    for r in range(rows):
                        T.buffer_store(acc, acc[at(r, v)] + ws[r] * x, [at(r, v)])
        for r in range(rows):
            for v in range(vectors):
                T.buffer_store(self.sums, acc[at(r, v)], [run((i * p.n + begin + r) * f.pitch + v * lanes, lanes)])

    def _store(self, origin, begin, v: int, outputs: int) -> None:
        """Channels origin + begin ... of vector v of tokens, ``outputs`` of them, at most a vector."""
        f, p, lanes = self.f, self.f.p, self.f.lanes
        rows = [
            T.Bind(self.sums[run((begin + (i if i < outputs else 0)) * f.pitch + v * lanes, lanes)])
            for i in range(lanes)
        ]
        for i, value in enumerate(transposed(rows, lanes)):
            to = T.Bind(self._token(v * lanes + i) * p.out_channels + origin + begin)
            for first, size in _powers(outputs):
                part = value if size == lanes else every(value, first, 1, size)
                index = run(to + first, size)
                if f.residual is not None:
                    part = part + f.residual[index]
                T.buffer_store(f.y, ACTIVATION[p.activation](part, size), [index])


def _powers(count: int) -> list[tuple[int, int]]:
    """``count`` lanes in vectors: (first, lanes), powers of two."""
    found, first = [], 0
    while count > first:
        size = 1 << ((count - first).bit_length() - 1)
        found.append((first, size))
        first += size
    return found
