"""Block compressed sparse rows, and which blocks of a weight are zero: the one place that maps weights to blocks.

A 1xN pruned layer is a matrix (M, K): M output channels, K = input channels times kernel taps. Here a *block* is
``bm`` consecutive output channels at one input channel with all its taps (``bk`` columns), so for a k x k convolution
``bk = kh * kw`` and for a 1x1 convolution ``bk = 1``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


def kept_blocks(weight: np.ndarray, n: int) -> np.ndarray:
    """(ceil(O / n), I) bool of ``weight`` (O, I, *kernel): does any element of a block differ from zero?"""
    kept = (weight != 0).reshape(*weight.shape[:2], -1).any(axis=2)
    return np.logical_or.reduceat(kept, np.arange(0, len(kept), n), axis=0)


def spread(kept: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """kept_blocks the other way: ``weight`` with the blocks that are not in ``kept`` zero."""
    mask = np.repeat(kept, n, axis=0)[: len(weight)]
    return np.where(mask.reshape(*mask.shape, *[1] * (weight.ndim - 2)), weight, 0).astype(weight.dtype)


@dataclass(frozen=True, eq=False)
class BSR:
    """Matrix (M, K) as blocks.

    data: (nnzb, bm, bk) float32; indices: (nnzb,) int32 block columns, ascending in a row;
    indptr: (ceil(M / bm) + 1,) int32. When ``bm`` does not divide M the last block row is short: its blocks are stored
    with zero rows appended, and no block straddles two block columns.
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def from_dense(cls, w: np.ndarray, block: tuple[int, int]) -> BSR:
        """Keep the blocks of ``w`` (M, K) that hold a non-zero. Raises ValueError when bk does not divide K."""
        bm, bk = block
        m, k = w.shape
        if bm < 1 or bk < 1 or k % bk:
            raise ValueError(f"BSR: block {block} does not fit a matrix {w.shape}; bm >= 1 and bk must divide K")
        kept = kept_blocks(w.reshape(m, k // bk, bk), bm)
        rows = len(kept)
        padded = np.zeros((rows * bm, k), dtype=np.float32)
        padded[:m] = w
        blocks = padded.reshape(rows, bm, k // bk, bk).transpose(0, 2, 1, 3)  # (rows, K/bk, bm, bk)
        indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
        return cls(np.ascontiguousarray(blocks[kept]), np.nonzero(kept)[1].astype(np.int32), indptr, (m, k))

    @classmethod
    def from_conv(cls, weight: np.ndarray, n: int) -> BSR:
        """1xN blocks of a convolution's weight (O, I, kh, kw): n output kernels at one input channel."""
        o, i, kh, kw = weight.shape
        return cls.from_dense(weight.reshape(o, i * kh * kw), (n, kh * kw))

    def in_image(self, groups: int) -> BSR:
        """Of a grouped convolution, whose indices count from a group's first channel: counted from the image's."""
        rows = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        first = rows * self.block[0] // (self.shape[0] // groups) * (self.shape[1] // self.block[1])
        return replace(self, indices=(self.indices + first).astype(np.int32))

    @property
    def block(self) -> tuple[int, int]:
        return self.data.shape[1], self.data.shape[2]

    @property
    def nnzb(self) -> int:
        """Number of stored blocks."""
        return self.data.shape[0]

    @property
    def density(self) -> float:
        """Stored blocks as a share of all blocks."""
        rows, cols = len(self.indptr) - 1, self.shape[1] // self.block[1]
        return self.nnzb / (rows * cols)

    def to_dense(self) -> np.ndarray:
        """The matrix (M, K) again."""
        bm, bk = self.block
        m, k = self.shape
        rows = len(self.indptr) - 1
        blocks = np.zeros((rows, k // bk, bm, bk), dtype=self.data.dtype)
        blocks[np.repeat(np.arange(rows), np.diff(self.indptr)), self.indices] = self.data
        return blocks.transpose(0, 2, 1, 3).reshape(rows * bm, k)[:m]
