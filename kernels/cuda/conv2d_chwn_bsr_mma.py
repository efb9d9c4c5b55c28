"""conv2d_chwn_bsr_mma: block-sparse convolution on tensor cores, blocks of 16, 32 or 64 filters.

A CTA gathers the input channels that its block row kept and multiplies dense tiles (kernels.cuda.mma).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kernels.bsr import BSR
from kernels.cuda import gather, mma, tile, tiles
from kernels.cuda.fragments import BY_PRECISION, ROWS
from kernels.problem import Problem

name = "conv2d_chwn_bsr_mma"
HEIGHTS = (16, 32, 64)


def refuses(p: Problem, target: Target) -> str | None:
    if not p.block:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; 1xN blocks are defined on ungrouped convolutions"
    if p.block not in HEIGHTS:
        return f"blocks of {p.block} rows; tensor cores take {ROWS} filters at once: N = 16, 32 or 64"
    return refuses_size(p)


def refuses_size(p: Problem) -> str | None:
    if p.precision not in BY_PRECISION:
        return f"precision {p.precision}; tensor cores take {' or '.join(BY_PRECISION)}"
    if p.taps > 64:
        return f"{p.taps} taps; at most 64 fit the mask of those inside the image"
    return gather.too_large(p)


def configs(p: Problem, target: Target) -> Sequence[dict]:
    return tiles.configs(p, target, p.block)


def pack(p: Problem, w: BSR, c: dict) -> dict[str, np.ndarray]:
    return tile.pack(p, gather.Lists.of(w, c["chunk"]), c)


def prim_func(p: Problem, c: dict, target: Target) -> tvm.tirx.PrimFunc:
    return mma.prim_func(p, c, p.block)
