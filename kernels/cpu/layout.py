"""How images lie in memory between layers: plane by plane, every plane padded to whole cache lines.

A plane of 14 x 14 is 196 floats, 12 1/4 lines: without padding three channels of four start inside a line, every vector
load of 64 bytes touches two, and a convolution runs at two thirds of its speed. What fills a plane's last line is
finite, and nobody's pixel: kernels may compute on it, and every kernel writes it. Planes under one line (the 1 x 1
images of squeeze-excite and classifier) are not padded.
"""

from __future__ import annotations

import numpy as np

from kerf.kernels.problem import Problem

LINE = 16  # floats of a cache line, and the widest vector


def pitch(pixels: int) -> int:
    """Floats from one plane of ``pixels`` to the next."""
    return pixels if pixels < LINE else -(-pixels // LINE) * LINE


def in_planes(p: Problem) -> tuple[int, int, int]:
    """The shape of the input as kernels take it: (n, c, pitch)."""
    return (p.batch, p.in_channels, pitch(p.height * p.width))


def out_planes(p: Problem) -> tuple[int, int, int]:
    """The shape of the output, and of the residual, as kernels write it."""
    return (p.batch, p.out_channels, pitch(p.out_height * p.out_width))


def to_planes(x: np.ndarray) -> np.ndarray:
    """(n, c, h, w) -> (n, c, pitch), zeros behind the pixels."""
    n, c, h, w = x.shape
    y = np.zeros((n, c, pitch(h * w)), x.dtype)
    y[:, :, : h * w] = x.reshape(n, c, h * w)
    return y


def from_planes(y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(n, c, pitch) -> (n, c, h, w)."""
    pixels = shape[2] * shape[3]
    return np.ascontiguousarray(y[:, :, :pixels]).reshape(shape)
