"""The kinds of target that kerf has kernels for, one row each: what differs between them is said here."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.target import Target

from kerf.kernels import cuda
from kerf.kernels.cpu import (
    conv2d_nchw_bsr_direct,
    conv2d_nchw_dense_direct,
    conv2d_nchw_depthwise,
    dense_nc_bsr_rows,
    dense_nc_dense_columns,
)
from kerf.kernels.kernel import Kernel


@dataclass(frozen=True)
class Backend:
    name: str  # of its folder
    kernels: tuple[Kernel, ...]  # in order of preference


CPU = Backend(
    "cpu",
    # the special first, the direct convolutions take what the others refuse
    kernels=(
        dense_nc_bsr_rows,
        conv2d_nchw_bsr_direct,
        conv2d_nchw_depthwise,
        dense_nc_dense_columns,
        conv2d_nchw_dense_direct,
    ),
)
CUDA = Backend("cuda", kernels=cuda.KERNELS)
BACKENDS = {"llvm": CPU, "cuda": CUDA}  # by TVM's kind of target
BY_NAME = {kernel.name: kernel for backend in BACKENDS.values() for kernel in backend.kernels}


def backend_of(target: Target) -> Backend:
    return BACKENDS[target.kind.name]
