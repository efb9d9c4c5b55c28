"""conv2d_nchw_bsr_direct: 1xN block-sparse convolution, any kernel size, stride, padding, dilation and batch.

Per stored block: ``vectors`` loads of input, N broadcast weights, N * ``vectors`` multiply-adds per tap. Wide N is cut
into sub-rows that share the indices, since more than a few broadcasts per vector would bind the load ports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.emit import columns, direct
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import LINE
from kerf.kernels.problem import Problem, computes
from kerf.kernels.vector import prefetch

name = "conv2d_nchw_bsr_direct"
AHEAD = 512  # floats of weights that are fetched before their turn


class Blocks:
    """BSR inside the function: data (nnzb, N * taps), indices (nnzb,), indptr (panels * block rows + 1,).

    A block is stored sub-row by sub-row, in each (tap, row): what a register tile reads lies together.
    """

    def __init__(self, p: Problem, c: Config, channel: int):
        self.p, self.n, self.rows = p, p.n, p.out_channels // p.n
        self.panels, self.channel = -(-p.in_channels // c["panel"]), channel
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

    @contextmanager
    def reduction(self, block, panel, first_row, rows: int) -> Iterator[tuple[Any, Callable]]:
        p, row = self.p, T.Bind(panel * block_rows(self.p) + block)
        # a short block row's last sub-row is stored whole
        stored = min(self.step, p.n - first_row) if isinstance(first_row, int) else rows
        begin = first_row * p.taps
        with T.serial(self.indptr[row], self.indptr[row + 1]) as j:
            for line in range(0, p.taps * stored, LINE):
                prefetch(self.data[j + self.ahead, begin + line])
            yield self.indices[j] * self.channel, lambda tap, r: self.data[j, begin + tap * stored + r]


def block_rows(p: Problem) -> int:
    return -(-p.out_channels // p.n)


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if not p.n:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; 1xN blocks are defined on ungrouped convolutions"
    return None


def configs(p: Problem, target: Target) -> Sequence[Config]:
    heights = tuple(sorted({min(p.n, 4), min(p.n, 6), min(p.n, 8)}))
    inputs = p.nnzb / block_rows(p)
    found = direct.configs(p, target, heights, inputs) + columns.configs(p, target, heights, inputs)
    return [c for _, c in sorted(found, key=lambda f: f[0])]


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters: blocks by panel of input channels, then by block row."""
    if w.nnzb == 0:
        data, indices = np.zeros((1, *w.block), np.float32), np.zeros(1, np.int32)
    else:
        data, indices = w.data, w.indices
    panels, rows = -(-p.in_channels // c["panel"]), len(w.indptr) - 1
    group = w.indices // c["panel"] * rows + np.repeat(np.arange(rows), np.diff(w.indptr))
    order = np.argsort(group, kind="stable") if w.nnzb else [0]
    counts = np.bincount(group, minlength=panels * rows)
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


def weights(p: Problem, c: Config) -> Blocks:
    """The format inside a function that reads the channels where the configuration puts them."""
    channel = columns.geometry(p, c).channel if c["pixels"] == "columns" else Planes.of(p).channel
    return Blocks(p, c, channel)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    form = columns if c["pixels"] == "columns" else direct
    return form.prim_func(p, c, target, weights(p, c))
