"""kerf.load(bundle).run(x): numpy in, numpy out. Needs TVM's runtime library and numpy; no torch, onnx or compiler.

``import tvm`` would load the compiler, 170 MB of resident memory; the runtime alone is a library of 3 MB.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import tvm_ffi

from kerf.deploy.runtime import bundle, gpu, machine
from kerf.deploy.runtime.gpu_session import GpuSession

CPU, POOLED = 1, 2  # DLPack's device type, the virtual machine's allocator
ALIGNED = 64  # bytes that TVM expects tensors to start on


def load(folder: str | Path, threads: int | None = None) -> Session | GpuSession:
    """A bundle's network, ready to run: its files' hashes, its version of TVM and this machine are checked first.

        y = kerf.load("model.kerf").run(x)

    x: float32 of exactly ``session.input_shape``, (images, channels, height, width) of what was exported; y: a new
    array of the file's output. threads: workers, by default as many as it was built for; code built for one thread
    runs on one only. A session is not safe for calls from several threads at once: load one for each.

    Raises FileNotFoundError where there is no bundle, BundleError (a BadInput) with the reason why it must not run here
    or so, ImportError where TVM's runtime, or a GPU's driver, is not installed.
    """
    folder = Path(folder)
    manifest = bundle.read_manifest(folder)
    installed = tvm_version()
    if manifest["tvm"] != installed:
        raise bundle.BundleError(
            f"{folder}: built with TVM {manifest['tvm']}, installed is {installed}; build it again, or pip install "
            f"apache-tvm=={manifest['tvm']}"
        )
    on_gpu = "cuda" in manifest["needs"]
    reason = machine.missing(manifest["needs"])
    if reason:
        remedy = "run it on such a GPU" if on_gpu else "build it with --target native on this machine"
        raise bundle.BundleError(f"{folder}: {reason}; {remedy}")
    if threads and threads > 1 and manifest["threads"] == 1:
        raise bundle.BundleError(
            f"{folder}: built for one thread, which {threads} cannot share; build it again with --threads {threads}"
        )
    load_runtime(on_gpu)
    if on_gpu:
        gpu.provide(manifest["cuda_source"], (folder / bundle.MACHINE_CODE).read_bytes())
        return GpuSession(_library(folder), bundle.read_weights(folder), manifest["input"])
    return Session(_library(folder), bundle.read_weights(folder), manifest["input"], threads or manifest["threads"])


def _library(folder: Path) -> tvm_ffi.Module:
    """Its code. Raises BundleError where the system does not load it, from a file system without execution, say."""
    try:
        return tvm_ffi.load_module(str(folder / "library.so"))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("library.so")[2].strip(": ")
        raise bundle.BundleError(
            f"{folder}: its library cannot be loaded ({reason}); is it on a file system mounted noexec?"
        ) from error


def tvm_version() -> str:
    """Raises ImportError where TVM is not installed."""
    try:
        return version("apache-tvm")
    except PackageNotFoundError as error:
        raise ImportError("apache-tvm is not installed; pip install kerf") from error


def load_runtime(cuda: bool = False) -> None:
    """TVM's runtime library into the process, without importing TVM; with ``cuda`` that of GPUs, too.

    Raises ImportError where it, or what it needs, is not installed.
    """
    package = importlib.util.find_spec("tvm")
    if package is None or package.origin is None:
        raise ImportError("apache-tvm is not installed; pip install kerf")
    name = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}.get(sys.platform, "libtvm_runtime.so")
    folder = Path(package.origin).parent / "lib"
    ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    extra = folder / name.replace("runtime", "runtime_extra")  # what TopK and other sorting operators call
    if extra.is_file():
        ctypes.CDLL(str(extra), mode=ctypes.RTLD_GLOBAL)
    if cuda:
        gpu.load_runtime(folder)


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts where TVM wants it."""
    room = np.empty(array.nbytes + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


_set = threading.local()  # TVM keeps a pool of workers for every calling thread


def use_threads(count: int) -> None:
    """Share parallel loops of the calling thread's code among ``count`` workers."""
    if getattr(_set, "count", None) != count:
        # else TVM pins the calling thread to a core, for everything the program does afterwards
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        # else its pool has half as many workers as the machine has cores, on the assumption that these are hyperthreads
        os.environ.setdefault("TVM_NUM_THREADS", str(max(count, os.cpu_count() or 1)))
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, count)
        _set.count = count


class Session:
    """One network ready to run. Not safe for calls from several threads at once."""

    def __init__(self, library: tvm_ffi.Module, weights: list[np.ndarray], input_shape: Sequence[int], threads: int):
        """``library``: module of a compiled network (of Built.executable, its jit())."""
        self.input_shape = tuple(input_shape)
        self.threads = threads
        self._machine = library["vm_load_executable"]()
        self._machine["vm_initialization"](CPU, 0, POOLED)
        self._run = self._machine["run"]
        self._kept = [*(tvm_ffi.from_dlpack(_aligned(w)) for w in weights), *self._machine["buffers"]()]
        self._pixels = _aligned(np.zeros(self.input_shape, np.float32))
        self._image = tvm_ffi.from_dlpack(self._pixels)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Output of the network for ``x`` (float32, exactly ``input_shape``). Raises BadInput for other inputs."""
        bundle.refuse_input(x, self.input_shape)
        use_threads(self.threads)
        # TVM needs 64-byte aligned, writable memory to take an array as it is; others are copied, to memory that is
        # kept: fresh pages for every image cost more than its pixels
        if x.flags.c_contiguous and x.flags.writeable and x.ctypes.data % ALIGNED == 0:
            image = tvm_ffi.from_dlpack(x)
        else:
            np.copyto(self._pixels, x)
            image = self._image
        return np.from_dlpack(self._run(image, *self._kept))
