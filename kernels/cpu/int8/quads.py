"""Weights as integer kernels read them: four input channels of N outputs at a time, in the order of the loops.

Per block row a list of channels, filled up to quads with weights of 0. data (words,) int32, four int8 each: for every
block row, for every sub-row of ``rows`` outputs, for every quad, for every tap, a word for each output. channels
(4 quads,), bytes where these name all channels, else uint16, indptr (block rows + 1,) int32, in quads.

Where a Dot sums pairs of channels in 16 bits, a weight that would make them overflow is cut, and what is cut off is
multiplied a second time: rest (entries * rows,), with rest_at, of each entry the number quad * taps + tap, and
rest_indptr (sub-rows + 1,). Few are: of a pair of normal weights with a largest of 127 one in eighty.
"""

from __future__ import annotations

import numpy as np

from kerf.kernels.bsr import BSR
from kerf.kernels.cpu.int8.dot import LARGEST_PAIR, QUAD

MOST_CHANNELS = 1 << 16


def channel_type(inputs: int) -> str:
    """Of the lists' entries: of 1x4 blocks of a 1x1 layer they are a third of what is stored, as uint16."""
    return "uint8" if inputs <= 1 << 8 else "uint16"


def pack(w: BSR, inputs: int, taps: int, rows: int, paired: bool) -> dict[str, np.ndarray]:
    """Blocks (nnzb, N, taps) of integers, of a layer of ``inputs`` channels. ``paired``: so that no pair of channels
    exceeds 16 bits (Dot).
    """
    n = w.block[0]
    data, channels, counts = [], [], [0]
    rest, places, rests = [], [], [0]
    for begin, end in zip(w.indptr, w.indptr[1:]):
        index, blocks = w.indices[begin:end], w.data[begin:end].astype(np.int16)
        if paired:  # the channel with the largest weights beside that with the smallest
            order = np.argsort(-np.abs(blocks).max(axis=(1, 2), initial=0), kind="stable")
            order = np.stack([order, order[::-1]], axis=1).reshape(-1)[: len(order)]
            index, blocks = index[order], blocks[order]
        more = -len(index) % QUAD
        channels.append(np.pad(index, (0, more)))
        words = np.pad(blocks, ((0, more), (0, 0), (0, 0))).reshape(-1, QUAD, n, taps).transpose(0, 3, 2, 1)
        counts.append(len(words))
        fitting = _fitting(words) if paired else words
        data += [_words(fitting[:, :, r : r + rows]) for r in range(0, n, rows)]
        if not paired:
            continue
        left = words - fitting
        for r in range(0, n, rows):
            at = left[:, :, r : r + rows].reshape(-1, min(rows, n - r), QUAD)
            some = np.flatnonzero(at.any(axis=(1, 2)))
            places.append(some)
            rest.append(_words(np.pad(at[some], ((0, 0), (0, rows - at.shape[1]), (0, 0)))))
            rests.append(len(some))
    arrays = {
        "data": _together(data, np.int32),
        "channels": _together(channels, np.dtype(channel_type(inputs)).type),
        "indptr": np.cumsum(counts).astype(np.int32),
    }
    if paired:
        arrays |= {
            "rest": _together(rest, np.int32),
            "rest_at": _together(places, np.int32),
            "rest_indptr": np.cumsum(rests).astype(np.int32),
        }
    return arrays


def _words(weights: np.ndarray) -> np.ndarray:
    """(.., 4) as int32."""
    return np.ascontiguousarray(weights.astype(np.int8)).reshape(-1).view(np.int32)


def _together(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    """One after the other; a tensor of zero bytes has no address, so at least one entry."""
    whole = np.concatenate(parts) if parts else np.zeros(0)
    return (whole if whole.size else np.zeros(1)).astype(dtype)


def _fitting(words: np.ndarray) -> np.ndarray:
    """The second of every pair cut: no positive weights of both, no negative ones, exceed LARGEST_PAIR."""
    found = words.copy()
    first = words[..., 0::2]
    found[..., 1::2] = np.clip(
        words[..., 1::2], -LARGEST_PAIR - np.minimum(first, 0), LARGEST_PAIR - np.maximum(first, 0)
    )
    return found
