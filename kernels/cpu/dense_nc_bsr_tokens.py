"""dense_nc_bsr_tokens: a matrix product on 1xN blocks for many rows of x (emit/tokens.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_bsr_direct
from kerf.kernels.cpu.dense_nc_dense_columns import is_matrix_product
from kerf.kernels.cpu.emit import tokens
from kerf.kernels.problem import Problem, computes

name = "dense_nc_bsr_tokens"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if not p.n:
        return "weights are dense"
    return tokens.refuses(p) if is_matrix_product(p) else f"{p.describe()} is no matrix product"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    inputs = p.nnzb / conv2d_nchw_bsr_direct.block_rows(p)
    return tokens.configs(p, target, sorted({min(p.n, 4), min(p.n, 6), min(p.n, 8)}), inputs)


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    return conv2d_nchw_bsr_direct.pack(p, w, _whole(p, c))


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return tokens.prim_func(p, c, target, conv2d_nchw_bsr_direct.Blocks(p, _whole(p, c), 1))


def _whole(p: Problem, c: Config) -> Config:
    """Input channels are swept at once."""
    return {**c, "panel": p.in_channels}
