"""Halo tiles: of every channel that a block row kept, the tile with the border that a window's taps reach into.

The geometry of a CTA of conv2d_chwn_bsr_halo, and its arrays. No TVM. A channel is copied once and read once per tap,
where kerf.kernels.cuda.emit.stage copies it once per tap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cuda.emit.fragments import F16, pack_weights
from kerf.kernels.cuda.emit.panel import Panel, Plane
from kerf.kernels.cuda.layout import in_rows
from kerf.kernels.problem import Problem

CHUNK = F16.depth  # channels


@dataclass(frozen=True)
class Halo(Panel):
    """A panel of CHUNK gathered channels, and one block row to a CTA."""

    taps: int

    @classmethod
    def of(cls, p: Problem, c: Config) -> Halo:
        tile = 1, c["across"], c["warp_pixels"], c["images"], c["wide"]
        return cls(Plane.of(p), p.n, *tile, CHUNK, c["stages"], c["stages"], p.taps)

    @property
    def weight(self) -> int:
        """Numbers of a chunk's weights."""
        return self.taps * CHUNK * self.height

    @property
    def held(self) -> int:
        """Bytes of all stages, weights included."""
        return self.stages * (self.stage + self.weight) * F16.bytes


def room(p: Problem) -> int:
    """Chunks that the lists of all block rows have at most."""
    return max((p.nnzb + -(-p.out_channels // p.n) * (CHUNK - 1)) // CHUNK, 1)


def pack(p: Problem, w: BSR) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters: weights by chunk, tap, 16 filters and lane; channels as places
    in x, the last chunk of a row filled up with its first channel and zero weights.
    """
    rows, taps = w.block
    counts = np.diff(w.indptr)
    chunks = -(-counts // CHUNK)
    starts = np.concatenate([[0], np.cumsum(chunks)]).astype(np.int32)
    used = int(starts[-1])
    weights, channels = np.zeros((used * CHUNK, rows, taps), np.float32), np.zeros(room(p) * CHUNK, np.int32)
    for row, (begin, count) in enumerate(zip(w.indptr, counts, strict=False)):
        if count:
            first = starts[row] * CHUNK
            weights[first : first + count] = w.data[begin : begin + count]
            channels[first : starts[row + 1] * CHUNK] = w.indices[begin]
            channels[first : first + count] = w.indices[begin : begin + count]
    by_tap = weights.reshape(used, CHUNK, rows, taps).transpose(0, 3, 1, 2).reshape(-1, rows)
    data = np.zeros((room(p), taps * CHUNK * rows), np.float16)
    data[:used] = pack_weights(F16, by_tap).reshape(used, taps * CHUNK * rows)
    return {"data": data, "channels": channels * np.int32(in_rows(p)[1]), "starts": starts}
