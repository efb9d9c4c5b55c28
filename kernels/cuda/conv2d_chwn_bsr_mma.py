"""conv2d_chwn_bsr_mma: block-sparse convolution on tensor cores, blocks of 16, 32 or 64 filters.

A CTA gathers the input channels that its block row kept and multiplies dense tiles (kerf.kernels.cuda.emit.mma).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather, mma, stage, tile_sizes
from kerf.kernels.problem import Problem

name = "conv2d_chwn_bsr_mma"


def refuses(p: Problem, target: Target) -> str | None:
    return tile_sizes.refuses_blocks(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return tile_sizes.configs(p, target, p.n)


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    return stage.pack(p, gather.Lists.of(w, c["chunk"]), c)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return mma.prim_func(p, c, p.n)
