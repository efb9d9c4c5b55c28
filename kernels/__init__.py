"""Sparse and dense convolution kernels generated in TVM TIR. They know layers (Problem), not networks."""

from hashlib import sha256
from pathlib import Path

from tvm.target import Target

from kerf.kernels import cuda
from kerf.kernels.cpu import (
    conv2d_nchw_bsr_direct,
    conv2d_nchw_dense_direct,
    conv2d_nchw_depthwise,
    dense_nc_bsr_rows,
    dense_nc_dense_columns,
)

# In order of preference: the special first, the direct convolutions take what the others refuse.
KERNELS = (
    dense_nc_bsr_rows,
    conv2d_nchw_bsr_direct,
    conv2d_nchw_depthwise,
    dense_nc_dense_columns,
    conv2d_nchw_dense_direct,
)
BY_NAME = {kernel.name: kernel for kernel in (*KERNELS, *cuda.KERNELS)}


def kernels_for(target: Target) -> tuple:
    """The table that a target's kernels are chosen from."""
    return cuda.KERNELS if target.kind.name == "cuda" else KERNELS


# Of the code that measurements were made with: those of other code say nothing about this one.
KERNELS_VERSION = sha256(
    b"".join(p.read_bytes() for p in sorted(p for p in Path(__file__).parent.rglob("*.py") if "cuda" not in p.parts))
).hexdigest()[:12]
