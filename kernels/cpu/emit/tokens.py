"""A matrix product for many rows of x, the tokens of a transformer; vectors run across tokens.

A tile of tokens is transposed into a panel, where an input channel's tokens lie side by side. Over it an input channel
costs what it costs a 1x1 convolution: ``vectors`` loads, as many broadcast weights as a register tile has rows, and a
multiply-add for each pair. Sums of as many block rows as fill vectors are transposed back on their way into y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.tiling import VISIT_CYCLES, far
from kerf.kernels.cpu.emit.transpose import transposed
from kerf.kernels.cpu.emit.weight_format import Weights
from kerf.kernels.cpu.layout import in_planes, out_planes
from kerf.kernels.cpu.machine import Machine, machine_of, parallel_loop, threads
from kerf.kernels.epilogue import activate
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import even_tiles, every, run, splat

FEWEST = 8  # tokens that are worth transposing
SHORT = ("none", "relu", "relu6", "clip")  # activations of an instruction or two
CHAINS = 8  # multiply-adds in flight: two pipes, four cycles each


def refuses(p: Problem) -> str | None:
    """Why a product, if it is one, is not worth it."""
    return f"{p.batch} tokens; vectors run across at least {FEWEST}" if p.batch < FEWEST else None


def configs(p: Problem, target: Target, heights: Sequence[int], inputs: float) -> Sequence[Config]:
    """Config "rows": output channels of a register tile, one of ``heights``; "vectors": of tokens in it.

    ``inputs``: input channels that a block row reads on average.
    """
    machine = machine_of(target)
    found: list[tuple[float, Config]] = []
    for lanes in machine.lanes:
        for rows in heights:
            # beside the sums, the smaller side lies in registers and the other streams through one
            fitting = [v for v in range(1, 13) if rows * v + min(rows, v) + 1 <= machine.registers]
            for vectors in [v for v in fitting if rows * v >= CHAINS] or fitting[-1:]:
                c: Config = {"lanes": lanes, "rows": rows, "vectors": min(vectors, -(-p.batch // lanes))}
                if c not in [other for _, other in found]:
                    found.append((_cycles(p, c, machine, inputs), c))
    if not p.n:  # all outputs are computed, at whatever height
        found = [(cycles / c["rows"], c) for cycles, c in found]
    return [c for _, c in sorted(found, key=lambda f: f[0])]


def _cycles(p: Problem, c: Config, machine: Machine, inputs: float) -> float:
    """Estimate for N output channels, or for those of a register tile: two multiply-adds and two loads a cycle."""
    total = 0.0
    for _, sub_rows, rows in even_tiles(p.n or c["rows"], c["rows"]):
        for _, tiles, vectors in even_tiles(-(-p.batch // c["lanes"]), c["vectors"]):
            step = max(rows * vectors, vectors + rows + 1, CHAINS) / 2 + 0.6
            step += far(machine, p.in_channels * vectors * c["lanes"]) * vectors
            total += sub_rows * tiles * (VISIT_CYCLES + 3 * rows * vectors + inputs * step)
    return total


def prim_func(p: Problem, c: Config, target: Target, weights: Weights) -> tvm.tirx.PrimFunc:
    """``weights`` count a channel as one float."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        function = _Function(p, c, weights)
        runs = [_Tiles(function, *run) for run in even_tiles(-(-p.batch // c["lanes"]), c["vectors"])]
        total = sum(tiles.count for tiles in runs)
        shares = min(-(-threads(target) // total), function.groups)  # threads that share a tile
        before = 0
        with parallel_loop(target)(0, total * shares) as job:
            for tiles in runs:
                place = (job // shares - before, job % shares, shares)
                _between(job // shares, before, before + tiles.count, total, partial(tiles.emit, *place))
                before += tiles.count
    return builder.get()


def _between(i, begin: int, end: int, total: int, body: Callable[[], None]) -> None:
    """``body`` where begin <= i < end; begin is 0, or end ``total``, the number of all i."""
    if (begin, end) == (0, total):
        body()
    else:
        with T.If(i < end if begin == 0 else i >= begin), T.Then():
            body()


class _Function:
    """What the tiles of one function have in common: its arguments, x and y flat."""

    def __init__(self, p: Problem, c: Config, weights: Weights):
        self.p, self.weights, self.n, self.lanes, self.rows = p, weights, weights.n, c["lanes"], c["rows"]
        self.together = self.lanes // math.gcd(self.lanes, self.n)  # block rows whose outputs fill vectors
        self.groups = -(-p.out_channels // (self.together * self.n))
        x = T.arg("x", T.buffer(in_planes(p), "float32"))
        weights.declare()
        self.bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(out_planes(p), "float32")) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), "float32"))
        self.x = T.decl_buffer((p.batch * p.in_channels,), "float32", data=x.data)
        self.residual: Any = None
        if residual is not None:
            self.residual = T.decl_buffer((p.batch * p.out_channels,), "float32", data=residual.data)
        self.y = T.decl_buffer((p.batch * p.out_channels,), "float32", data=y.data)


class _Tiles:
    """``count`` tiles of ``vectors`` of tokens, from vector ``first``."""

    def __init__(self, function: _Function, first: int, count: int, vectors: int):
        self.f, self.before, self.count, self.vectors = function, first * function.lanes, count, vectors
        self.pitch = vectors * function.lanes

    def emit(self, tile, share, shares: int) -> None:
        """Tile number ``tile``; of its block rows share number ``share`` of ``shares``."""
        f, p = self.f, self.f.p
        self.token = T.Bind(self.before + tile * self.pitch)
        self.panel = T.alloc_buffer((p.in_channels * self.pitch,), "float32")
        self.sums = T.alloc_buffer((f.together * f.n * self.pitch,), "float32")
        self._fill_panel()
        outputs = f.together * f.n
        whole, rest = divmod(p.out_channels, outputs)
        begin, end = (T.Bind(part * whole // shares) for part in (share, share + 1))
        # one loop over all block rows: one of a few would be unrolled, and their sums together outnumber the registers
        with T.serial(0, (end - begin) * f.together) as i:
            block = T.Bind(begin * f.together + i)
            self._block_row(block, block % f.together)
            with T.If(block % f.together == f.together - 1), T.Then():
                self._store_all(block // f.together * outputs, outputs)
        if rest:
            _between(share, shares - 1, shares, shares, lambda: self._last(whole, rest))

    def _token(self, i):
        """The tile's i-th. Behind the last one the last one again: it is computed, and stored, twice."""
        return T.min(self.token + i, self.f.p.batch - 1)

    def _fill_panel(self) -> None:
        f, channels, lanes = self.f, self.f.p.in_channels, self.f.lanes
        with T.serial(0, self.vectors) as v:
            origins = [T.Bind(self._token(v * lanes + i) * channels) for i in range(lanes)]

            def square(k):
                """Channels k .. k + lanes - 1."""
                rows = [T.Bind(f.x[run(origin + k, lanes)]) for origin in origins]
                for i, column in enumerate(transposed(rows, lanes)):
                    T.buffer_store(self.panel, column, [run((k + i) * self.pitch + v * lanes, lanes)])

            if channels < lanes:
                for k in range(channels):
                    for i, origin in enumerate(origins):
                        T.buffer_store(self.panel, f.x[origin + k], [k * self.pitch + v * lanes + i])
                return
            with T.serial(0, -(-channels // lanes)) as i:  # the last one overlaps its neighbour
                square(T.Bind(T.min(i * lanes, channels - lanes)))

    def _last(self, group: int, outputs: int) -> None:
        """The last group of block rows, whose outputs do not fill their vectors."""
        f = self.f
        with T.serial(0, -(-outputs // f.n)) as i:
            self._block_row(group * f.together + i, i)
        self._store_all(group * f.together * f.n, outputs)

    def _block_row(self, block, i) -> None:
        """The sums of block row ``block`` into ``sums``, as its i-th."""
        f = self.f
        for first, sub_rows, rows in even_tiles(f.n, f.rows):
            with T.serial(0, sub_rows) as sub:
                self._sum(block, i, first + sub * rows if sub_rows > 1 else first, rows)

    def _store_all(self, origin, outputs: int) -> None:
        """Sums of so many channels into y, from channel ``origin``."""
        f, lanes = self.f, self.f.lanes
        whole, rest = divmod(outputs, lanes)
        if self.activates_sums:  # in a loop: LLVM takes long over many copies of a long one
            with T.serial(0, f.together * f.n * self.vectors) as i:
                at = run(i * lanes, lanes)
                T.buffer_store(self.sums, activate(f.p.epilogue, self.sums[at], lanes), [at])
        with T.serial(0, self.vectors) as v:
            with T.serial(0, whole) as i:
                self._store(origin, i * lanes, v, lanes)
            if rest:
                self._store(origin, whole * lanes, v, rest)

    def _sum(self, block, i, begin, rows: int) -> None:
        """Output channels begin .. begin + rows - 1 of a block row into ``sums``, as its i-th."""
        f, p, lanes, vectors = self.f, self.f.p, self.f.lanes, self.vectors
        acc = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="local", annotations=REGISTERS)

        def at(r: int, v: int):
            return run((r * vectors + v) * lanes, lanes)

        for r in range(rows):
            channel = T.min(block * f.n + begin + r, p.out_channels - 1)
            start = T.Bind(splat(f.bias[channel], lanes))
            for v in range(vectors):
                T.buffer_store(acc, start, [at(r, v)])
        (loop,) = f.weights.reductions(block, 0, begin, rows)
        with loop as (channel, w, _):
            offset = T.Bind(channel * self.pitch)
            if vectors < rows:
                xs = [T.Bind(self.panel[run(offset + v * lanes, lanes)]) for v in range(vectors)]
                for r in range(rows):
                    wr = T.Bind(splat(w(0, r), lanes))
                    for v in range(vectors):
                        T.buffer_store(acc, acc[at(r, v)] + wr * xs[v], [at(r, v)])
            else:
                ws = [T.Bind(splat(w(0, r), lanes)) for r in range(rows)]
                for v in range(vectors):
                    x = T.Bind(self.panel[run(offset + v * lanes, lanes)])
                    for r in range(rows):
                        T.buffer_store(acc, acc[at(r, v)] + ws[r] * x, [at(r, v)])
        for r in range(rows):
            for v in range(vectors):
                T.buffer_store(self.sums, acc[at(r, v)], [run((i * f.n + begin + r) * self.pitch + v * lanes, lanes)])

    @property
    def activates_sums(self) -> bool:
        """Whether the activation comes before the way into y, where a residual would be added."""
        return self.f.residual is None and self.f.p.activation not in SHORT

    def _store(self, origin, begin, v, outputs: int) -> None:
        """Channels origin + begin ... of vector v of tokens, ``outputs`` of them, at most a vector."""
        f, p, lanes = self.f, self.f.p, self.f.lanes
        rows = [
            T.Bind(self.sums[run((begin + (i if i < outputs else 0)) * self.pitch + v * lanes, lanes)])
            for i in range(lanes)
        ]
        for i, value in enumerate(transposed(rows, lanes)):
            to = T.Bind(self._token(v * lanes + i) * p.out_channels + origin + begin)
            for first, size in _powers(outputs):
                part = value if size == lanes else every(value, first, 1, size)
                index = run(to + first, size)
                if f.residual is not None:
                    part = part + f.residual[index]
                done = part if self.activates_sums else activate(p.epilogue, part, size)
                T.buffer_store(f.y, done, [index])


def _powers(count: int) -> list[tuple[int, int]]:
    """``count`` lanes in vectors: (first, lanes), powers of two."""
    found, first = [], 0
    while count > first:
        size = 1 << ((count - first).bit_length() - 1)
        found.append((first, size))
        first += size
    return found
