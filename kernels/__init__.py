"""Sparse and dense convolution kernels generated in TVM TIR. They know layers (Problem), not networks."""

from kernels import (
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
BY_NAME = {kernel.name: kernel for kernel in KERNELS}

# Raised when a kernel's code changes, so that measurements of the old code are not used for the new.
KERNELS_VERSION = "1"
