"""The kinds of target that kerf has kernels for, one row each: what differs between them is said here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm.target import Target

from kerf.errors import Unsupported
from kerf.kernels import cuda
from kerf.kernels.cpu import (
    conv2d_nchw_bsr_direct,
    conv2d_nchw_dense_direct,
    conv2d_nchw_depthwise,
    dense_nc_bsr_rows,
    dense_nc_bsr_tokens,
    dense_nc_dense_columns,
    dense_nc_dense_tokens,
)
from kerf.kernels.cpu.form import PaddedPlanes
from kerf.kernels.cpu.int8 import (
    conv2d_nchw_bsr_bands,
    conv2d_nchw_bsr_quads,
    conv2d_nchw_bytes_direct,
    conv2d_nchw_dense_quads,
    conv2d_nchw_depthwise_bytes,
    conv2d_nchw_depthwise_quads,
    dense_nc_quads_columns,
)
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.cuda import compiler
from kerf.kernels.cuda.form import ChannelRows
from kerf.kernels.form import Form
from kerf.kernels.kernel import Kernel
from kerf.kernels.version import code_version


@dataclass(frozen=True)
class Backend:
    name: str  # of its folder
    kernels: tuple[Kernel, ...]  # in order of preference
    form: Callable[[Target, str], Form]  # of images of a dtype (Problem.dtype)
    precisions: tuple[str, ...]  # of floats (kerf.kernels.precision.PRECISIONS), the first where none is asked for
    attributes: tuple[str, ...]  # of a target, that change code
    family: Callable[[Target], str]  # of targets that take the same configurations; "" where nothing is known of them
    device: str = ""  # what a machine must have besides a CPU
    # Threads for what is not kerf's own: operators that TVM's importer brought.
    schedule: Callable[[Target], Sequence[tvm.transform.Pass]] = lambda target: ()
    # Of a compiled module: what runs on the device, as source and as machine code.
    device_code: Callable[[tvm.runtime.Module, Target], tuple[str, bytes]] = lambda module, target: ("", b"")

    @property
    def version(self) -> str:
        """Of its kernels' code."""
        return code_version(self.name)


CPU = Backend(
    "cpu",
    # the special first, the direct convolutions take what the others refuse
    kernels=(
        dense_nc_bsr_tokens,
        dense_nc_bsr_rows,
        conv2d_nchw_bsr_direct,
        conv2d_nchw_depthwise,
        dense_nc_dense_tokens,
        dense_nc_dense_columns,
        conv2d_nchw_dense_direct,
        conv2d_nchw_bsr_bands,
        conv2d_nchw_bsr_quads,
        conv2d_nchw_depthwise_quads,
        conv2d_nchw_depthwise_bytes,
        dense_nc_quads_columns,
        conv2d_nchw_dense_quads,
        conv2d_nchw_bytes_direct,
    ),
    form=PaddedPlanes,
    precisions=("f32",),
    attributes=("mtriple", "mcpu", "mattr", "num-cores"),
    family=lambda target: machine_of(target).family,
)
CUDA = Backend(
    "cuda",
    kernels=cuda.KERNELS,
    form=ChannelRows,
    precisions=("f16", "tf32", "f32"),
    attributes=("arch",),
    family=lambda target: str(target.attrs["arch"]),
    device="cuda",
    schedule=compiler.schedule,
    device_code=compiler.device_code,
)
BACKENDS = {"llvm": CPU, "cuda": CUDA}  # by TVM's kind of target
BY_NAME = {kernel.name: kernel for backend in BACKENDS.values() for kernel in backend.kernels}


def backend_of(target: Target) -> Backend:
    """Raises Unsupported for a kind that has no row."""
    kind = target.kind.name
    if kind not in BACKENDS:
        raise Unsupported(f"no kernels for targets of kind {kind!r}; expected {' or '.join(BACKENDS)}")
    return BACKENDS[kind]
