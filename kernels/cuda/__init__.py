"""Kernels for NVIDIA GPUs, in the protocol of those for CPUs: generated in TIR, on images with the batch innermost."""

from kerf.kernels.cuda import (
    conv2d_chwn_bsr_halo,
    conv2d_chwn_bsr_mma,
    conv2d_chwn_bsr_panels,
    conv2d_chwn_bsr_simt,
    conv2d_chwn_dense_mma,
    conv2d_chwn_dense_simt,
    conv2d_chwn_depthwise,
)

# In order of preference.
KERNELS = (
    conv2d_chwn_bsr_halo,
    conv2d_chwn_bsr_mma,
    conv2d_chwn_bsr_panels,
    conv2d_chwn_bsr_simt,
    conv2d_chwn_depthwise,
    conv2d_chwn_dense_mma,
    conv2d_chwn_dense_simt,
)
