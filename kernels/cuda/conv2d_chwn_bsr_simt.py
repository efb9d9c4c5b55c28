"""conv2d_chwn_bsr_simt: block-sparse convolution in exact float32, blocks of 1 to 8 filters, which tensor cores cannot
take or would round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather, simt
from kerf.kernels.problem import Problem

name = "conv2d_chwn_bsr_simt"
MOST = 8  # rows of a block: VECTOR sums each in a thread's registers


def refuses(p: Problem, target: Target) -> str | None:
    if not p.n:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; takes blocks of ungrouped convolutions"
    if p.n > MOST:
        return f"blocks of {p.n} rows; a thread's registers hold {MOST}"
    return gather.refuses(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return [{"threads": t} for t in (128, 64, 32, 256)]


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    return gather.pack(p, gather.Lists.of(w, 1))


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return simt.prim_func(p, c, p.n)
