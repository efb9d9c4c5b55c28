"""dense_nc_dense_tokens: a matrix product on dense weights for many rows of x (emit/tokens.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_dense_direct
from kerf.kernels.cpu.dense_nc_dense_columns import is_matrix_product
from kerf.kernels.cpu.emit import tokens
from kerf.kernels.problem import Problem, computes

name = "dense_nc_dense_tokens"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if p.n:
        return "weights are block-sparse"
    return tokens.refuses(p) if is_matrix_product(p) else f"{p.describe()} is no matrix product"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return tokens.configs(p, target, (4, 6, 8), p.in_channels)


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    return conv2d_nchw_dense_direct.pack(p, w, c)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    whole: Config = {**c, "panel": p.in_channels}
    return tokens.prim_func(p, c, target, conv2d_nchw_dense_direct.DenseRows(p, whole, 1))
