"""The layers that scripts/gpu/gpu_kit.py compiles and scripts/gpu/gpu_bench.py checks and times. No TVM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kerf.kernels.bsr import BSR
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem

SAME = (1, 1, 1, 1)

# Shapes chosen to hurt: primes, remainders, strides, dilation, uneven padding, groups, batches of every divisibility.
CHECKED = {
    "primes": Problem(1, 7, 11, 13, 5, (3, 3), padding=SAME),
    "1x1": Problem(3, 13, 14, 14, 24, activation="relu6"),
    "stride 2": Problem(8, 5, 17, 19, 11, (3, 3), (2, 2), SAME, activation="relu"),
    "stem": Problem(8, 3, 33, 33, 40, (7, 7), (2, 2), (3, 3, 3, 3), activation="relu6"),
    "dilated": Problem(2, 4, 12, 15, 6, (3, 5), (2, 1), (0, 1, 2, 0), (2, 1), residual=True),
    "no padding": Problem(4, 3, 9, 10, 4, (3, 3)),
    "grouped": Problem(8, 32, 9, 9, 64, (3, 3), padding=SAME, groups=2, activation="silu"),
    "odd groups": Problem(1, 6, 7, 7, 9, (3, 3), padding=SAME, groups=3, activation="hardswish"),
    "depthwise": Problem(2, 19, 14, 14, 19, (3, 3), padding=SAME, groups=19, activation="relu6", residual=True),
    "depthwise stride 2": Problem(8, 17, 23, 29, 17, (5, 5), (2, 2), (2, 2, 2, 2), groups=17, activation="hardswish"),
    "classifier": Problem(3, 37, 1, 1, 101, activation="sigmoid"),
    "N=16": Problem(8, 24, 14, 14, 40, (3, 3), padding=SAME, n=16, activation="relu", residual=True),
    "N=16, one image": Problem(1, 24, 14, 14, 40, (3, 3), padding=SAME, n=16, activation="hardsigmoid"),
    "N=32": Problem(8, 48, 12, 12, 64, (3, 3), padding=SAME, n=32, residual=True),
    "N=32, 1x1": Problem(3, 50, 13, 11, 70, n=32, activation="relu", residual=True),
    "N=32, stride 2": Problem(16, 64, 14, 14, 96, (1, 1), (2, 2), n=32),
    "N=64": Problem(4, 40, 9, 9, 130, (3, 3), (2, 2), SAME, n=64, activation="relu"),
    "N=64, one image": Problem(1, 96, 7, 7, 128, n=64, residual=True),
    "N=2": Problem(1, 13, 10, 10, 7, n=2),
    "N=4": Problem(8, 24, 15, 14, 42, (3, 3), (2, 2), SAME, n=4, activation="silu", residual=True),
    "N=8": Problem(64, 33, 7, 7, 64, n=8, activation="relu"),
}
DENSITIES = (0.0, 0.3, 1.0)


def resnet50(batch: int, n: int = 0, precision: str = "f16") -> list[tuple[Problem, int]]:
    """(convolution with bias, activation and residual as in the network, how often) for 224 x 224 images."""
    found: list[tuple[Problem, int]] = []

    def add(count: int, inputs: int, size: int, outputs: int, k: int = 1, stride: int = 1, **rest) -> None:
        pad = k // 2
        p = Problem(
            batch, inputs, size, size, outputs, (k, k), (stride, stride), (pad,) * 4, **types_of(precision), **rest
        )
        found.append((p, count))

    add(1, 3, 224, 64, 7, 2, activation="relu")
    inputs, size = 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        stride, outputs = (1 if width == 64 else 2), 4 * width
        add(1, inputs, size, width, activation="relu", n=n)
        add(1, inputs, size, outputs, 1, stride, n=n)
        if stride == 2:
            add(1, width, size, width, 3, 2, activation="relu", n=n)
        size //= stride
        add(blocks - (stride == 2), width, size, width, 3, activation="relu", n=n)
        add(blocks, width, size, outputs, activation="relu", residual=True, n=n)
        add(blocks - 1, outputs, size, width, activation="relu", n=n)
        inputs = outputs
    return found


def weights(p: Problem, density: float, seed: int = 0) -> tuple[Problem, np.ndarray, np.ndarray]:
    """(problem with nnzb, weight (O, I/groups, kh, kw), bias (O,)) with this share of blocks, whose number differs from
    row to row as after global pruning.
    """
    rng = np.random.default_rng(seed)
    fan = p.in_channels // p.groups * p.taps
    w = (rng.standard_normal(p.weight_shape) / np.sqrt(fan)).astype(np.float32)
    if p.n:
        rows = -(-p.out_channels // p.n)
        kept = rng.permutation(rows * p.in_channels) < round(density * rows * p.in_channels)
        w *= np.repeat(kept.reshape(rows, -1), p.n, axis=0)[: p.out_channels, :, None, None]
        p = replace(p, nnzb=BSR.from_conv(w, p.n).nnzb)
    return p, w, rng.standard_normal(p.out_channels).astype(np.float32)
