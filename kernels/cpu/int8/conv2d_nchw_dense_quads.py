"""conv2d_nchw_dense_quads: dense convolution of bytes, as one block row of all outputs, which share their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.int8 import direct, estimate, quads
from kerf.kernels.cpu.int8.dot import DOTS
from kerf.kernels.cpu.machine import threads
from kerf.kernels.problem import Problem

name = "conv2d_nchw_dense_quads"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses(p):
        return reason
    if p.n:
        return "weights are block-sparse"
    return f"{p.groups} groups" if p.groups > 1 else None


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return estimate.configs(p, target, _outputs(p, target), p.in_channels)


def _outputs(p: Problem, target: Target) -> int:
    """Of a block row: where threads cut those, each has one."""
    return -(-p.out_channels // threads(target))


def _n(p: Problem, c: Config) -> int:
    return -(-p.out_channels // c.get("parts", 1))


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (O, I, kh, kw)"""
    n, flat = _n(p, c), w.reshape(p.out_channels, p.in_channels, p.taps)
    rows = -(-p.out_channels // n)
    padded = np.zeros((rows * n, *flat.shape[1:]), np.int8)
    padded[: p.out_channels] = flat
    blocks = padded.reshape(rows, n, p.in_channels, p.taps).transpose(0, 2, 1, 3).reshape(-1, n, p.taps)
    index = np.tile(np.arange(p.in_channels, dtype=np.int32), rows)
    indptr = (np.arange(rows + 1) * p.in_channels).astype(np.int32)
    whole = BSR(blocks, index, indptr, (p.out_channels, p.in_channels * p.taps))
    return quads.pack(whole, p.taps, c["rows"], DOTS[c["dot"]].paired)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return direct.prim_func(p, c, target, _n(p, c))
