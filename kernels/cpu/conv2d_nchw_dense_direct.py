"""conv2d_nchw_dense_direct: dense (also grouped) convolution with the same register tile as the sparse kernel.

Weights are packed in rows of ``rows`` output channels, (blocks, I / groups, taps, rows), so a tile reads them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit import columns, direct
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import LINE
from kerf.kernels.problem import Problem, computes
from kerf.kernels.vector import prefetch

name = "conv2d_nchw_dense_direct"
AHEAD = 512  # floats of weights that are fetched before their turn


class DenseRows:
    def __init__(self, p: Problem, c: Config, channel: int):
        self.p, self.n, self.rows = p, c["rows"], p.out_channels // c["rows"]
        self.parts = c.get("parts", 1)
        self.ahead = -(-AHEAD // (p.taps * self.n))
        self.inputs, self.panel, self.channel = p.in_channels // p.groups, c["panel"], channel

    def declare(self) -> None:
        shape = (-(-self.p.out_channels // self.n), self.inputs, self.p.taps, self.n)
        self.data = T.arg("data", T.buffer(shape, "float32"))

    def share(self, k) -> tuple[Any, Any]:
        rows = -(-self.p.out_channels // self.n)
        return rows * k // self.parts, rows * (k + 1) // self.parts

    def reductions(self, block, panel, first_row, rows: int) -> list[AbstractContextManager[tuple[Any, Callable]]]:
        return [self._loop(block, panel, first_row)]

    @contextmanager
    def _loop(self, block, panel, first_row) -> Iterator[tuple[Any, Callable]]:
        group = block // (self.p.out_channels // self.p.groups // self.n) if self.p.groups > 1 else 0
        begin = T.Bind(panel * self.panel)
        with T.serial(begin, T.min(begin + self.panel, self.inputs)) as j:
            for line in range(0, self.p.taps * self.n, LINE):
                prefetch(self.data[block, j + self.ahead, line // self.n, line % self.n])
            yield (group * self.inputs + j) * self.channel, lambda tap, r: self.data[block, j, tap, first_row + r]


def refuses(p: Problem, target: Target) -> str | None:
    return "weights are block-sparse" if p.n else computes(p, "f32")


def configs(p: Problem, target: Target) -> Sequence[Config]:
    per_group = p.out_channels // p.groups
    heights = [h for h in (4, 6, 8) if h <= per_group and (p.groups == 1 or per_group % h == 0)]
    if not heights:
        heights = [max(h for h in (1, 2, 3, 4) if h <= per_group and (p.groups == 1 or per_group % h == 0))]
    inputs = p.in_channels // p.groups
    found = direct.configs(p, target, tuple(heights), inputs) + columns.configs(p, target, tuple(heights), inputs)
    return [c for _, c in sorted(found, key=lambda f: f[0])]


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (O, I / groups, kh, kw) -> data (blocks, I / groups, taps, rows), zero rows appended to a short last block."""
    rows = c["rows"]
    blocks = -(-p.out_channels // rows)
    padded = np.zeros((blocks * rows, w.shape[1], p.taps), np.float32)
    padded[: p.out_channels] = w.reshape(p.out_channels, w.shape[1], p.taps)
    return {"data": np.ascontiguousarray(padded.reshape(blocks, rows, w.shape[1], p.taps).transpose(0, 2, 3, 1))}


def weights(p: Problem, c: Config, target: Target) -> DenseRows:
    """The format inside a function that reads the channels where the configuration puts them."""
    channel = columns.geometry(p, c).channel if c["pixels"] == "columns" else Planes.of(p).channel
    return DenseRows(p, c, channel)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    form = columns if c["pixels"] == "columns" else direct
    return form.prim_func(p, c, target, weights(p, c, target))
