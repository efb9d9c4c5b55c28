"""Panels: an image tile with all its channels in shared memory, from which every warp gathers what its block row kept.

The geometry of a CTA of conv2d_chwn_bsr_panels, and its arrays. No TVM. Where ``tile`` gathers while it copies from
global memory, here a panel of consecutive channels is copied as it is, once for several block rows, with the border
that a window's taps reach into; gathering is then done by the addresses that ldmatrix takes, each of a row of eight
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.fragments import COLUMNS, F16, LANES, ROWS, pack_weights, staged_row
from kerf.kernels.cuda.layout import VECTOR, in_rows
from kerf.kernels.problem import Problem

EIGHT = 8  # rows of a matrix that ldmatrix reads at once, of 16 bytes: all 32 banks


@dataclass(frozen=True)
class Plane:
    """What a tile is cut from: (height, width) positions of ``batch`` numbers, and the window over them.

    A pointwise convolution is one row of positions, whatever its image and batch.
    """

    batch: int
    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, p: Problem) -> Plane:
        if gather.pointwise(p):
            size = 1, in_rows(p)[1] // VECTOR
            return cls(VECTOR, size, size, (1, 1), (1, 1), (0, 0), (1, 1))
        size, out = (p.height, p.width), (p.out_height, p.out_width)
        return cls(p.batch, size, out, p.kernel, p.stride, p.padding[:2], p.dilation)


@dataclass(frozen=True)
class Panel:
    """Sizes of one CTA's work: ``down`` block rows x ``across`` warps, each of ``warp_pixels`` numbers."""

    plane: Plane
    height: int  # filters of a block row
    down: int
    across: int
    warp_pixels: int
    images: int  # of a position
    wide: int  # positions of a tile's row
    channels: int
    stages: int
    panels: int

    @classmethod
    def of(cls, p: Problem, c: Config) -> Panel:
        tile = c["down"], c["across"], c["warp_pixels"], c["images"], c["wide"]
        return cls(Plane.of(p), p.n, *tile, c["channels"], c["stages"], -(-p.in_channels // c["channels"]))

    @property
    def threads(self) -> int:
        return self.down * self.across * LANES

    @property
    def pixels(self) -> int:
        return self.across * self.warp_pixels

    @property
    def tall(self) -> int:
        """Rows of positions."""
        return self.pixels // self.images // self.wide

    @property
    def steps(self) -> tuple[int, int]:
        """In shared memory, from a position's window to the next one's: strides of 1x1 are not copied."""
        rows, columns = (1 if k == 1 else s for k, s in zip(self.plane.kernel, self.plane.stride, strict=True))
        return rows, columns

    @property
    def source_steps(self) -> tuple[int, int]:
        """In the image, from one copied position to the next."""
        rows, columns = (s if k == 1 else 1 for k, s in zip(self.plane.kernel, self.plane.stride, strict=True))
        return rows, columns

    @property
    def copied(self) -> tuple[int, int]:
        """Positions (rows, columns) of the tile with its border."""
        reach = [(k - 1) * d + 1 for k, d in zip(self.plane.kernel, self.plane.dilation, strict=True)]
        tile = (self.tall, self.wide)
        rows, columns = ((n - 1) * s + r for n, s, r in zip(tile, self.steps, reach, strict=True))
        return rows, columns

    @property
    def vectors(self) -> int:
        """Of a channel's copied positions."""
        return self.copied[0] * self.copied[1] * self.images // VECTOR

    @property
    def row(self) -> int:
        """Numbers from one channel to the next: an odd number of vectors, so that eight rows lie in different banks."""
        return (self.vectors | 1) * VECTOR

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Of rows, columns and images."""
        sizes = zip((*self.plane.out, self.plane.batch), (self.tall, self.wide, self.images), strict=True)
        rows, columns, images = (-(-n // m) for n, m in sizes)
        return rows, columns, images

    @property
    def stage(self) -> int:
        return self.channels * self.row

    @property
    def held(self) -> int:
        """Bytes of all stages."""
        return min(self.stages, self.panels) * self.stage * F16.bytes

    @property
    def shared_bytes(self) -> int:
        """Sums are staged where the image was."""
        return max(self.held, self.down * self.across * ROWS * staged_row(self.warp_pixels) * 4)

    def place(self, row, column):
        """Of the window of the tile's position (row, column) in a channel's copied positions."""
        return (row * self.steps[0] * self.copied[1] + column * self.steps[1]) * self.images

    def column(self, n: int) -> int:
        """Of the n-th 8 numbers of a warp, from its first."""
        position, rest = divmod(n * COLUMNS, self.images)
        return self.place(position // self.wide, position % self.wide) + rest

    def tap(self, taps):
        """Numbers from a window's first position to that of ``taps``."""
        dy, dx = taps // self.plane.kernel[1], taps % self.plane.kernel[1]
        return (dy * self.plane.dilation[0] * self.copied[1] + dx * self.plane.dilation[1]) * self.images

    def fits(self) -> bool:
        """Whether warps get whole rows of positions, or rows whole warps, and pairs of 8 numbers lie evenly apart."""
        line = self.wide * self.images
        even = line % self.warp_pixels == 0 or self.warp_pixels % line == 0
        if self.pixels % line or self.images % VECTOR or self.warp_pixels % (2 * COLUMNS) or not even:
            return False
        apart = {self.column(n + 1) - self.column(n) for n in range(0, self.warp_pixels // COLUMNS, 2)}
        return len(apart) == 1 and self.threads <= 1024


def room(p: Problem, panel: Panel) -> int:
    """Steps of 16 entries that all lists have at most, however the blocks are shared among rows and panels."""
    lists = -(-p.out_channels // p.n) * panel.panels
    return max((p.nnzb * p.taps + lists * (F16.depth - 1)) // F16.depth, 1)


def block_rows(p: Problem, panel: Panel) -> int:
    """Filled up to whole CTAs."""
    return -(-p.out_channels // (p.n * panel.down)) * panel.down


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters: lists by block row, then by panel."""
    panel = Panel.of(p, c)
    panels, rows = panel.panels, len(w.indptr) - 1
    # a block row and a panel are a block row of their own
    group = np.repeat(np.arange(rows), np.diff(w.indptr)) * panels + w.indices // panel.channels
    indptr = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=rows * panels))]).astype(np.int32)
    lists = gather.Lists.of(BSR(w.data, w.indices, indptr, w.shape), F16.depth)
    places = lists.channels % panel.channels * panel.row + panel.tap(lists.taps)
    order = spread_over_banks(places, lists.starts * F16.depth)
    steps, used = room(p, panel), int(lists.starts[-1])
    data = np.zeros((steps, F16.depth * p.n), np.float16)
    offsets = np.zeros(steps * F16.depth, np.int32)
    data[:used] = pack_weights(F16, lists.weights[order]).reshape(used, F16.depth * p.n)
    offsets[: used * F16.depth] = places[order]
    starts = np.full(block_rows(p, panel) * panels + 1, used, np.int32)
    starts[: rows * panels + 1] = lists.starts
    return {"data": data, "offsets": offsets, "starts": starts}


def spread_over_banks(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """An order of every list's entries in which eight in a row, as ldmatrix reads them, lie in different banks where
    they can: from each of the eight classes of places that share banks, the fullest first.
    """
    order = np.arange(len(places))
    classes = places // VECTOR % EIGHT
    for begin, end in pairwise(starts):
        left = [list(begin + np.flatnonzero(classes[begin:end] == k)) for k in range(EIGHT)]
        taken: list[int] = []
        while len(taken) < end - begin:
            fullest = sorted((queue for queue in left if queue), key=len, reverse=True)
            fitting = EIGHT - len(taken) % EIGHT
            taken += [queue.pop() for queue in fullest[:fitting]]
        order[begin:end] = taken
    return order
