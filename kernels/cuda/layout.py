"""How images lie in the memory of a GPU between layers: channel by channel, the images of the batch innermost.

A channel is a row of height * width * batch numbers, ((y * width + x) * batch + image), filled up to whole vectors of
16 bytes. Gathering the channels that a block row kept then moves long contiguous runs, and with a batch that is a
multiple of 8 a convolution's taps and strides shift by whole vectors, so that asynchronous copies never straddle one.
What fills a row's last vector is finite, and nobody's pixel.
"""

from __future__ import annotations

import numpy as np

from kerf.kernels.problem import Problem

VECTOR = 8  # numbers that rows are filled up to: 16 bytes of float16


def pitch(pixels: int) -> int:
    """Numbers from one channel to the next, of ``pixels`` = height * width * batch."""
    return -(-pixels // VECTOR) * VECTOR


def images_at_once(batch: int) -> int:
    """Images that a warp goes along: a power of two, the batch or more, at most the lanes of a warp."""
    return 1 << min(batch - 1, 31).bit_length()


def rows_of(shape: tuple[int, int, int, int]) -> tuple[int, int]:
    """(channels, pitch) of images (n, c, h, w)."""
    n, c, h, w = shape
    return c, pitch(n * h * w)


def in_rows(p: Problem) -> tuple[int, int]:
    return rows_of(p.in_shape)


def out_rows(p: Problem) -> tuple[int, int]:
    return rows_of(p.out_shape)


def to_rows(x: np.ndarray) -> np.ndarray:
    """(n, c, h, w) -> (c, pitch), zeros behind the pixels."""
    n, c, h, w = x.shape
    y = np.zeros(rows_of(x.shape), x.dtype)
    y[:, : n * h * w] = x.transpose(1, 2, 3, 0).reshape(c, -1)
    return y


def from_rows(y: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """(c, pitch) -> (n, c, h, w)."""
    n, c, h, w = shape
    return np.ascontiguousarray(y[:, : n * h * w].reshape(c, h, w, n).transpose(3, 0, 1, 2))
