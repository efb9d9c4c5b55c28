"""The tile of one CTA of mma.py: its sizes, and the weights in the order in which it reads them. No TVM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.fragments import COLUMNS, LANES, ROWS, Instruction, instruction, pack_weights, staged_row
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Tile:
    """Sizes of one CTA's work."""

    op: Instruction
    rows: int  # filters
    pixels: int
    warp_rows: int
    warp_pixels: int
    slices: int  # sets of warps that share a chunk's entries, each with sums of its own for the whole tile
    chunk: int
    stages: int
    copy: int  # numbers of one copy of image
    repeat: int  # block rows, one after the other
    cache: str  # "ca": copies of image are kept in the first-level cache, for the taps to come; "cg": they are not

    @classmethod
    def of(cls, p: Problem, c: Config, rows: int) -> Tile:
        op = instruction(p)
        sizes = (c["pixels"], c["warp_rows"], c["warp_pixels"], c["slices"], c["chunk"], c["stages"])
        return cls(op, rows, *sizes, gather.contiguous(p, op.vector), c.get("repeat", 1), c["cache"])

    @property
    def slice_warps(self) -> int:
        """Warps that the tile's filters and pixels are shared among."""
        return self.rows // self.warp_rows * (self.pixels // self.warp_pixels)

    @property
    def warps(self) -> int:
        return self.slice_warps * self.slices

    @property
    def steps(self) -> int:
        """Instructions of a warp along a chunk's entries."""
        return self.chunk // self.op.depth // self.slices

    @property
    def threads(self) -> int:
        return self.warps * LANES

    @property
    def columns(self) -> int:
        """Copies in a row of the image tile."""
        return self.pixels // self.copy

    @property
    def at_once(self) -> int:
        """Entries that all threads together copy at once."""
        return self.threads // self.columns

    @property
    def copies(self) -> int:
        """Of a thread, in a chunk."""
        return self.chunk // self.at_once

    @property
    def loads(self) -> bool:
        """Whether copies go through registers: below 4 bytes there is no asynchronous one."""
        return self.copy * self.op.bytes < 4

    @property
    def registers(self) -> int:
        """Of a thread, which the loop over chunks cannot do without: sums, copies and where they come from."""
        return self.warp_rows * self.warp_pixels // LANES + self.copies * (2 if self.loads else 1)

    @property
    def row(self) -> int:
        """Numbers from one entry's pixels to the next one's in shared memory."""
        return self.pixels + 8

    @property
    def image(self) -> int:
        """Numbers of a stage's image."""
        return self.chunk * self.row

    @property
    def weight(self) -> int:
        return self.chunk * self.rows

    @property
    def held(self) -> int:
        """Bytes of all stages."""
        return self.stages * (self.image + self.weight) * self.op.bytes

    @property
    def staged(self) -> int:
        """Bytes of all warps' staged sums."""
        return self.warps * ROWS * staged_row(self.warp_pixels) * 4

    @property
    def shared_bytes(self) -> int:
        """Where several block rows follow one another, copies for the next go on while the sums of one are staged."""
        return self.held + self.staged if self.repeat > 1 else max(self.held, self.staged)

    def fits(self) -> bool:
        """Whether the work divides evenly among warps and threads."""
        even = self.rows % self.warp_rows == 0 and self.pixels % self.warp_pixels == 0
        return (
            even
            and self.warp_rows % ROWS == 0
            and self.warp_pixels % (2 * COLUMNS) == 0
            and self.chunk % (self.op.depth * self.slices) == 0
            and self.threads <= 512
            and self.threads % self.columns == 0
            and self.chunk % self.at_once == 0
        )


def threads_beside(registers: int) -> int:
    """Of a multiprocessor, if each cannot do without so many registers: they get 64, 85, 128 or 255."""
    return 1024 if registers <= 26 else 768 if registers <= 35 else 512 if registers <= 76 else 256


def room(p: Problem, chunk: int, rows: int) -> int:
    """Chunks that the lists of all block rows have at most, however the blocks are shared among the rows."""
    block_rows = -(-p.out_channels // rows)
    if not p.n:
        return block_rows * -(-p.in_channels // p.groups * p.taps // chunk)
    return max((p.nnzb * p.taps + block_rows * (chunk - 1)) // chunk, 1)


def pack(p: Problem, lists: gather.Lists, c: Config) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters, filled up to ``room``."""
    op, chunk, rows = instruction(p), c["chunk"], lists.weights.shape[1]
    chunks = room(p, chunk, rows)
    used = int(lists.starts[-1])
    data = np.zeros((chunks, chunk * rows), np.dtype(op.dtype))
    offsets, taps = np.zeros(chunks * chunk, np.int32), np.zeros(chunks * chunk, np.int32)
    data[:used] = pack_weights(op, lists.weights).reshape(used, chunk * rows)
    offsets[: used * chunk], taps[: used * chunk] = gather.offsets(p, lists), lists.taps
    bounded = {"taps": taps} if gather.bounded(p) else {}
    return {"data": data, "offsets": offsets, **bounded, "starts": lists.starts}
