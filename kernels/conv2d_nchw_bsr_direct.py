"""conv2d_nchw_bsr_direct: 1xN block-sparse convolution, any kernel size, stride, padding, dilation and batch.

Per stored block: ``vectors`` loads of input, N broadcast weights, N * ``vectors`` multiply-adds per tap. Wide N is cut
into sub-rows that share the indices, since more than a few broadcasts per vector would bind the load ports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kernels import direct
from kernels.bsr import BSR
from kernels.planes import Planes
from kernels.problem import Problem

name = "conv2d_nchw_bsr_direct"


class _Blocks:
    """BSR inside the function: data (nnzb, taps, N), channel offsets (nnzb,), indptr (block rows + 1,)."""

    def __init__(self, p: Problem):
        self.p, self.height, self.rows = p, p.block, p.out_channels // p.block

    def declare(self) -> None:
        p = self.p
        # an all-zero layer still needs arrays of one entry: a tensor of zero bytes has no address
        self.data = T.arg("data", T.buffer((max(p.nnzb, 1), p.taps, p.block), "float32"))
        self.offsets = T.arg("offsets", T.buffer((max(p.nnzb, 1),), "int32"))
        self.indptr = T.arg("indptr", T.buffer((-(-p.out_channels // p.block) + 1,), "int32"))

    @contextmanager
    def reduction(self, block) -> Iterator[tuple]:
        with T.serial(self.indptr[block], self.indptr[block + 1]) as j:
            yield self.offsets[j], lambda tap, row: self.data[j, tap, row]


def refuses(p: Problem, target: Target) -> str | None:
    if not p.block:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; 1xN blocks are defined on ungrouped convolutions"
    return None


def configs(p: Problem, target: Target) -> Sequence[dict]:
    return direct.configs(p, target, tuple(sorted({min(p.block, 4), min(p.block, 6), min(p.block, 8)})))


def pack(p: Problem, w: BSR, c: dict) -> dict[str, np.ndarray]:
    """Arrays in the order of the function's parameters; indices become offsets, in floats, of the channel's plane."""
    if w.nnzb == 0:
        data, indices = np.zeros((1, *w.block), np.float32), np.zeros(1, np.int32)
    else:
        data, indices = w.data, w.indices
    return {
        "data": np.ascontiguousarray(data.transpose(0, 2, 1)),  # (nnzb, taps, N)
        "offsets": (indices * Planes.of(p).channel).astype(np.int32),
        "indptr": w.indptr,
    }


def prim_func(p: Problem, c: dict, target: Target) -> tvm.tirx.PrimFunc:
    return direct.prim_func(p, c, target, _Blocks(p))
