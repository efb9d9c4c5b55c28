"""conv2d_chwn_dense_mma: dense and grouped convolution on tensor cores: bsr_mma's program, every channel kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather, mma, stage, tile_sizes
from kerf.kernels.cuda.emit.fragments import ROWS
from kerf.kernels.problem import Problem

name = "conv2d_chwn_dense_mma"


def heights(p: Problem) -> list[int]:
    """Filters of a CTA: of several groups a divisor of one's."""
    most = p.out_channels // p.groups
    return [h for h in (128, 64, 32, 16) if (most % h == 0 if p.groups > 1 else h < 2 * most or h == ROWS)]


def refuses(p: Problem, target: Target) -> str | None:
    if p.n:
        return "weights are sparse"
    if not heights(p):
        return f"{p.out_channels // p.groups} filters to a group; tensor cores take {ROWS} at once"
    return tile_sizes.refuses_size(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    found: list[Config] = [{"rows": h, **c} for h in heights(p) for c in tile_sizes.configs(p, target, h)]
    return sorted(found, key=lambda c: tile_sizes.cost(p, target, c, c["rows"]))


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    return stage.pack(p, gather.Lists.of(gather.dense_blocks(p, w, c["rows"]), c["chunk"]), c)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return mma.prim_func(p, c, c["rows"])
