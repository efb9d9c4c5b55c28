"""conv2d_nchw_bsr_quads: 1xN block-sparse convolution of bytes, any kernel, stride, padding, dilation, batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.int8 import direct, estimate, quads
from kerf.kernels.cpu.int8.dot import DOTS
from kerf.kernels.problem import Problem, sparse

name = "conv2d_nchw_bsr_quads"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses_convolution(p):
        return reason
    return sparse(p)


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return estimate.configs(p, target, p.n, p.nnzb * p.n / p.out_channels)


def cycles(p: Problem, target: Target) -> float:
    return estimate.quads_cycles(p, p.nnzb * p.n / p.out_channels)


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    return quads.pack(w.in_image(p.groups), p.in_channels, p.taps, c["rows"], DOTS[c["dot"]].paired)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    return direct.prim_func(p, c, target, p.n)
