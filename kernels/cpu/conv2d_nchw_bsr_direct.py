"""conv2d_nchw_bsr_direct: 1xN block-sparse convolution, any kernel size, stride, padding, dilation and batch.

Per stored block: ``vectors`` loads of input, N broadcast weights, N * ``vectors`` multiply-adds per tap. Wide N is cut
into sub-rows that share the indices, since more than a few broadcasts per vector would bind the load ports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.emit import columns, direct
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.emit.weight_format import Step
from kerf.kernels.cpu.layout import LINE
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.problem import Problem, computes, sparse
from kerf.kernels.vector import prefetch

name = "conv2d_nchw_bsr_direct"
UNROLLED = 4  # blocks of a turn: a cache line of 1x4 blocks
AHEAD = 512  # floats of weights that are fetched before their turn


class Blocks:
    """BSR inside the function: data (nnzb, N * taps), indices (nnzb,), indptr (panels * block rows + 1,).

    A block is stored sub-row by sub-row, in each (tap, row): what a register tile reads lies together.
    """

    def __init__(self, p: Problem, c: Config, channel: int, unroll: int = 1):
        """``unroll``: blocks that a turn of the loop over them takes."""
        self.unroll = unroll
        self.p, self.n, self.rows = p, p.n, p.out_channels // p.n
        self.panels, self.channel = -(-(p.in_channels // p.groups) // c["panel"]), channel
        self.parts, self.step = c.get("parts", 1), c["rows"]
        self.ahead = -(-AHEAD // (p.taps * p.n))

    def declare(self) -> None:
        p = self.p
        # an all-zero layer still needs arrays of one entry: a tensor of zero bytes has no address
        self.data = T.arg("data", T.buffer((max(p.nnzb, 1), p.taps * p.n), "float32"))
        self.indices = T.arg("indices", T.buffer((max(p.nnzb, 1),), "int32"))
        self.indptr = T.arg("indptr", T.buffer((self.panels * block_rows(p) + 1,), "int32"))
        self.cuts: Any = T.arg("cuts", T.buffer((self.parts + 1,), "int32")) if self.parts > 1 else None

    def share(self, k) -> tuple[Any, Any]:
        return self.cuts[k], self.cuts[k + 1]

    def reductions(self, block, panel, first_row, rows: int) -> list[AbstractContextManager[Step]]:
        p, row = self.p, T.Bind(panel * block_rows(self.p) + block)
        # a short block row's last sub-row is stored whole
        stored = min(self.step, p.n - first_row) if isinstance(first_row, int) else rows
        begin, end, at = self.indptr[row], self.indptr[row + 1], (first_row * p.taps, stored)
        if self.unroll == 1:
            return [self._loop(begin, end, 1, *at)]
        begin, end = T.Bind(begin), T.Bind(end)
        whole = T.Bind(begin + (end - begin) // self.unroll * self.unroll)
        return [self._loop(begin, whole, self.unroll, *at), self._loop(whole, end, 1, *at)]

    @contextmanager
    def _loop(self, begin, end, unroll: int, first, stored) -> Iterator[Step]:
        """Over blocks begin to end, ``unroll`` of them a turn; ``first``, ``stored``: of a block's weights."""
        with ExitStack() as loops:
            turn = loops.enter_context(T.serial(0, (end - begin) // unroll)) if unroll > 1 else 0
            j = begin + turn * unroll if unroll > 1 else loops.enter_context(T.serial(begin, end))
            for line in range(0, unroll * self.p.taps * stored, LINE):
                prefetch(self.data[j + self.ahead, first + line])
            j = j + loops.enter_context(T.unroll(0, unroll)) if unroll > 1 else j
            j = T.Bind(j) if unroll > 1 else j
            yield Step(
                self.indices[j] * self.channel,
                lambda tap, r: self.data[j, first + tap * stored + r],
                lambda: self.indices[T.min(j + 1, max(self.p.nnzb, 1) - 1)] * self.channel,
            )


def block_rows(p: Problem) -> int:
    return -(-p.out_channels // p.n)


def refuses(p: Problem, target: Target) -> str | None:
    return computes(p, "f32") or sparse(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    heights = tuple(sorted({min(p.n, 4), min(p.n, 6), min(p.n, 8)}))
    inputs = p.nnzb / block_rows(p)
    found = direct.configs(p, target, heights, inputs) + columns.configs(p, target, heights, inputs)
    return [c for _, c in sorted(found, key=lambda f: f[0])]


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters: blocks by panel of input channels, then by block row.

    Of a grouped convolution panels divide the channels of a group; indices are those of the image's.
    """
    if w.nnzb == 0:
        data, indices = np.zeros((1, *w.block), np.float32), np.zeros(1, np.int32)
    else:
        data, indices = w.data, w.in_image(p.groups).indices
    per_group, rows = p.in_channels // p.groups, len(w.indptr) - 1
    turn = w.indices // c["panel"] * rows + np.repeat(np.arange(rows), np.diff(w.indptr))
    order = np.argsort(turn, kind="stable") if w.nnzb else [0]
    counts = np.bincount(turn, minlength=-(-per_group // c["panel"]) * rows)
    arrays = {
        "data": np.concatenate(
            [
                data[order, r : r + c["rows"]].transpose(0, 2, 1).reshape(len(data), -1)
                for r in range(0, p.n, c["rows"])
            ],
            axis=1,
        ),
        "indices": indices[order],
        "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    }
    if (parts := c.get("parts", 1)) > 1:  # block rows cut where every thread has as many blocks
        shares = np.linspace(0, w.nnzb, parts + 1)[1:-1]
        arrays["cuts"] = np.array([0, *np.searchsorted(w.indptr, shares), rows], np.int32)
    return arrays


def weights(p: Problem, c: Config, target: Target) -> Blocks:
    """The format inside a function that reads the channels where the configuration puts them."""
    if c["pixels"] == "columns":
        return Blocks(p, c, columns.geometry(p, c).channel)
    # where instructions take elements of vectors, a turn over one block of a 1×1 layer would be a third overhead
    return Blocks(p, c, Planes.of(p).channel, UNROLLED if p.taps == 1 and machine_of(target).by_element else 1)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    form = columns if c["pixels"] == "columns" else direct
    return form.prim_func(p, c, target, weights(p, c, target))
