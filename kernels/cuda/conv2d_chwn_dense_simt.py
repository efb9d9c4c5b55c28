"""conv2d_chwn_dense_simt: dense, grouped and depthwise convolution without tensor cores."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather, simt
from kerf.kernels.problem import Problem

name = "conv2d_chwn_dense_simt"
ROWS = 8


def refuses(p: Problem, target: Target) -> str | None:
    return "weights are sparse" if p.n else gather.refuses(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    rows = gcd(p.out_channels // p.groups, ROWS) if p.groups > 1 else ROWS
    return [{"rows": r, "threads": t} for r in sorted({rows, gcd(rows, 4)}, reverse=True) for t in (128, 64, 32)]


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    return gather.pack(p, gather.Lists.of(gather.dense_blocks(p, w, c["rows"]), 1))


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return simt.prim_func(p, c, c["rows"])
