"""What a block row reads, as a list: the entries (input channel, tap) of its stored blocks, and where each one lies.

The reduction of a convolution over its stored blocks is a product of a dense matrix, the block row's weights, with rows
gathered from the input: entry (channel, tap) is that channel, shifted by that tap. Lists are cut into chunks of equal
length for the tensor cores; the last is filled up with zero weights on the row's own first entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from kerf.kernels.bsr import BSR
from kerf.kernels.cuda.layout import VECTOR, in_rows
from kerf.kernels.precision import PRECISIONS
from kerf.kernels.problem import Problem, computes


@dataclass(frozen=True)
class Lists:
    """weights (entries, rows) float32, zero where filled up; channels and taps (entries,) int32; starts (block rows
    + 1,) int32, in chunks.
    """

    weights: np.ndarray
    channels: np.ndarray
    taps: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, w: BSR, chunk: int) -> Lists:
        """``chunk`` entries to a chunk. A block row without blocks has none."""
        rows, taps = w.block
        counts = np.diff(w.indptr) * taps
        chunks = -(-counts // chunk)
        starts = np.concatenate([[0], np.cumsum(chunks)]).astype(np.int32)
        total = int(starts[-1]) * chunk
        runs = [start * chunk + np.arange(count) for start, count in zip(starts, counts, strict=False)]
        at = np.concatenate(runs).astype(int)
        # filled up with the row's first entry: a finite image times zero
        first = w.indices[np.minimum(w.indptr[:-1], w.nnzb - 1)] if w.nnzb else np.zeros_like(chunks)
        first = np.repeat(first, chunks * chunk)
        weights = np.zeros((total, rows), np.float32)
        channels, tap = first.astype(np.int32), np.zeros(total, np.int32)
        weights[at] = w.data.transpose(0, 2, 1).reshape(-1, rows)
        channels[at] = np.repeat(w.indices, taps)
        tap[at] = np.tile(np.arange(taps, dtype=np.int32), w.nnzb)
        return cls(weights, channels, tap, starts)


def dense_blocks(p: Problem, w: np.ndarray, height: int) -> BSR:
    """Dense weights (O, I/groups, kh, kw) in block rows of ``height`` filters, which divides a group's if there are
    several: every channel of the group is stored.
    """
    o, i, kh, kw = w.shape
    rows = -(-o // height)
    padded = np.zeros((rows * height, i, kh * kw), np.float32)
    padded[:o] = w.reshape(o, i, kh * kw)
    data = padded.reshape(rows, height, i, kh * kw).transpose(0, 2, 1, 3).reshape(rows * i, height, kh * kw)
    group = np.arange(rows, dtype=np.int32) * height // (o // p.groups) if p.groups > 1 else np.zeros(rows, np.int32)
    indices = (group[:, None] * i + np.arange(i, dtype=np.int32)).reshape(-1).astype(np.int32)
    indptr = np.arange(rows + 1, dtype=np.int32) * i
    return BSR(np.ascontiguousarray(data), indices, indptr, (o, p.in_channels * kh * kw))


def bounded(p: Problem) -> bool:
    """Whether a tap of some pixel lies outside the image."""
    return any(p.padding)


def pointwise(p: Problem) -> bool:
    """Whether every output pixel reads the input pixel of its own number alone."""
    return p.taps == 1 and p.stride == (1, 1) and not bounded(p)


def shift(p: Problem, tap):
    """(rows, columns) that ``tap``, a number or an array, lies from a window's first pixel."""
    return tap // p.kernel[1] * p.dilation[0], tap % p.kernel[1] * p.dilation[1]


def offsets(p: Problem, lists: Lists) -> np.ndarray:
    """Of every entry from a window's first pixel in channel 0, in numbers (entries,) int32."""
    dy, dx = shift(p, lists.taps)
    return (lists.channels.astype(np.int64) * in_rows(p)[1] + (dy * p.width + dx) * p.batch).astype(np.int32)


def contiguous(p: Problem, most: int) -> int:
    """Numbers of at most ``most`` that every entry of a window can be copied in at once, wherever it lies."""
    return most if pointwise(p) else gcd(p.batch, most)


def refuses(p: Problem) -> str | None:
    """Why its numbers are no floats, its taps do not fit a mask of 64 bits, or its offsets 32 bits; None if they do."""
    if reason := computes(p, *PRECISIONS):
        return reason
    if p.taps > 64:
        return f"{p.taps} taps; at most 64 fit the mask of those inside the image"
    numbers = max(prod(in_rows(p)), p.out_channels * (p.batch * p.out_height * p.out_width + VECTOR))
    return f"{numbers:,} numbers in an image; offsets have 32 bits" if numbers >= 2**31 else None


def entries(p: Problem, rows: int) -> int:
    """Entries of all lists; at least one, since a tensor of no bytes has no address."""
    if p.n:
        return max(p.nnzb * p.taps, 1)
    return -(-p.out_channels // rows) * (p.in_channels // p.groups) * p.taps


def pack(p: Problem, lists: Lists) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters."""
    arrays = {"data": lists.weights, "offsets": offsets(p, lists), **({"taps": lists.taps} if bounded(p) else {})}
    if not lists.starts[-1]:
        arrays = {key: np.zeros((1, *a.shape[1:]), a.dtype) for key, a in arrays.items()}
    return {**arrays, "starts": lists.starts}
