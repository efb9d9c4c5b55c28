"""conv2d_nchw_dense_quads: dense convolution of bytes, grouped or not: all outputs of a group are one block row, and
share its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.int8 import direct, estimate, quads
from kerf.kernels.cpu.int8.dot import DOTS, QUAD
from kerf.kernels.cpu.int8.strips import geometry
from kerf.kernels.cpu.machine import threads
from kerf.kernels.problem import Problem

name = "conv2d_nchw_dense_quads"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses_convolution(p):
        return reason
    return "weights are block-sparse" if p.n else None


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return estimate.configs(p, target, _outputs(p, threads(target)), _inputs(p))


def cycles(p: Problem, target: Target) -> float:
    return estimate.quads_cycles(p, _inputs(p))


def _inputs(p: Problem) -> int:
    """Channels that are multiplied, in whole quads."""
    return -(-(p.in_channels // p.groups) // QUAD) * QUAD


def _outputs(p: Problem, parts: int) -> int:
    """Of a block row: those of a group; without groups one for each thread."""
    return p.out_channels // p.groups if p.groups > 1 else -(-p.out_channels // parts)


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (O, I / groups, kh, kw) int8"""
    return _folded(p, w, c) if "fold" in c else _packed(p, w, c)


def _packed(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    n, inputs = _outputs(p, c.get("parts", 1)), p.in_channels // p.groups
    rows = -(-p.out_channels // n)
    padded = np.zeros((rows * n, inputs, p.taps), np.int8)
    padded[: p.out_channels] = w.reshape(p.out_channels, inputs, p.taps)
    blocks = padded.reshape(rows, n, inputs, p.taps).transpose(0, 2, 1, 3).reshape(-1, n, p.taps)
    first = np.arange(rows) * inputs if p.groups > 1 else np.zeros(rows, np.int64)
    index = (first[:, None] + np.arange(inputs)).reshape(-1).astype(np.int32)
    whole = BSR(blocks, index, (np.arange(rows + 1) * inputs).astype(np.int32), (rows * n, inputs * p.taps))
    return quads.pack(whole, p.in_channels, p.taps, c["rows"], DOTS[c["dot"]].paired)


def _folded(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """Of a layer whose channels are all channels' taps; their list says where each is read."""
    alone = replace(
        p, in_channels=p.in_channels * p.taps, height=p.out_height, width=p.out_width,
        kernel=(1, 1), stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1),
    )  # fmt: skip
    packed = _packed(alone, w.reshape(p.out_channels, -1), c)
    planes = geometry(p)
    taps = [planes.tap(*divmod(tap, p.kernel[1])) for tap in range(p.taps)]
    at = (np.arange(p.in_channels)[:, None] * planes.channel + np.array(taps)).reshape(-1)
    return {**packed, "channels": at[packed["channels"]].astype(np.int32)}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return direct.prim_func(p, c, target, _outputs(p, c.get("parts", 1)))
