"""A network on an NVIDIA GPU: numpy in, numpy out, or tensors that stay on the device. TVM's runtime alone."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import numpy as np
import tvm_ffi

from kerf.deploy.runtime.feed import feed
from kerf.deploy.runtime.manifest import Tensor

CPU, CUDA, POOLED = 1, 2, 2  # DLPack's device types, the virtual machine's allocator


class GpuSession:
    """One network ready to run. Calls of ``run`` from several threads wait for one another."""

    threads = 1  # of the host

    def __init__(self, library: tvm_ffi.Module, weights: list[np.ndarray], input_shape: Sequence[int]):
        """``library``: module of a compiled network, its machine code provided (kerf.deploy.runtime.gpu)."""
        self.input_shape = tuple(input_shape)
        self.inputs: dict[str, Tensor] = {"input": {"dtype": "float32", "shape": list(input_shape)}}
        self.outputs: dict[str, Tensor] = {"output": {"dtype": "float32", "shape": None}}
        self._machine = library["vm_load_executable"]()
        # the host's memory is the second device: shapes are computed there
        self._machine["vm_initialization"](CUDA, 0, POOLED, CPU, 0, POOLED)
        self._run = self._machine["run"]
        self._kept = [*(upload(w) for w in weights), *self._machine["buffers"]()]
        self._image = allocate(self.input_shape, "float32")
        self._busy = threading.Lock()

    def run(self, x: np.ndarray) -> np.ndarray:
        """Output of the network for ``x`` (float32, exactly ``input_shape``). Raises BadInput for other inputs."""
        (image,) = feed(x, self.inputs).values()
        with self._busy:
            fill(self._image, image)
            return download(self.run_on_device(self._image))

    def run_on_device(self, x):
        """The same for a tensor that lies on the GPU (anything that speaks DLPack); the result stays there, and may not
        be computed yet.
        """
        return self._run(x, *self._kept)


def allocate(shape: tuple[int, ...], dtype: str):
    """A tensor on the first GPU."""
    make = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return make(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), tvm_ffi.device("cuda:0"), None)


def upload(array: np.ndarray):
    tensor = allocate(array.shape, str(array.dtype))
    fill(tensor, array)
    return tensor


def fill(tensor, array: np.ndarray) -> None:
    array = np.ascontiguousarray(array)
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")
    copy(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)


def download(tensor) -> np.ndarray:
    """A copy in the host's memory; waits for the device."""
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
    copy(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return array
