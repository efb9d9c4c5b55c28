"""load(bundle) -> Session: numpy in, numpy out. Needs TVM's runtime and numpy; no torch, no onnx, no compiler."""

from __future__ import annotations

import os
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

from deploy import bundle, machine


def load(folder: str | Path, threads: int | None = None) -> Session:
    """Verify a bundle's hashes, TVM version and target, and load it.

    ``threads``: worker threads, by default as many as it was built for; code built for one thread runs on one only.
    Raises FileNotFoundError, or BundleError with the reason why the bundle must not run here or so.
    """
    folder = Path(folder)
    manifest = bundle.read_manifest(folder)
    if manifest["tvm"] != version("apache-tvm"):
        raise bundle.BundleError(
            f"{folder}: built with TVM {manifest['tvm']}, installed is {version('apache-tvm')}; build it again"
        )
    reason = machine.missing(manifest["needs"])
    if reason:
        raise bundle.BundleError(f"{folder}: {reason}; build it with --target native on this machine")
    if threads and threads > 1 and manifest["threads"] == 1:
        raise bundle.BundleError(
            f"{folder}: built for one thread, which {threads} cannot share; build it again with --threads {threads}"
        )
    library = tvm.runtime.load_module(str(folder / "library.so"))
    return Session(library, bundle.read_weights(folder), manifest, threads or manifest["threads"])


_set = threading.local()  # TVM keeps a pool of workers for every calling thread


def use_threads(count: int) -> None:
    """Share parallel loops of the calling thread's code among ``count`` workers."""
    if getattr(_set, "count", None) != count:
        # else TVM pins the calling thread to a core, for everything the program does afterwards
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        # else its pool has half as many workers as the machine has cores, on the assumption that these are hyperthreads
        os.environ.setdefault("TVM_NUM_THREADS", str(max(count, os.cpu_count() or 1)))
        tvm.get_global_func("runtime.config_threadpool")(1, count)
        _set.count = count


class Session:
    """One network ready to run. Not safe for calls from several threads at once."""

    def __init__(self, executable, weights: list[np.ndarray], manifest: dict, threads: int):
        self.manifest = manifest
        self.input_shape = tuple(manifest["input"])
        self.threads = threads
        self._machine = VirtualMachine(executable, tvm.cpu())
        self._main = self._machine["main"]
        self._weights = [tvm.runtime.tensor(w) for w in weights]
        self._image = tvm.runtime.empty(self.input_shape, "float32")
        self._pixels = np.from_dlpack(self._image)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Output of the network for ``x`` (float32, exactly ``input_shape``). Raises ValueError for other inputs."""
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.shape != self.input_shape:
            came = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise ValueError(f"input is {came}; this bundle takes a numpy array float32 {self.input_shape}")
        use_threads(self.threads)
        # TVM needs 64-byte aligned, writable memory to take an array as it is; others are copied, to memory that is
        # kept: fresh pages for every image cost more than its pixels
        if x.flags.c_contiguous and x.flags.writeable and x.ctypes.data % 64 == 0:
            image = tvm.runtime.from_dlpack(x)
        else:
            np.copyto(self._pixels, x)
            image = self._image
        return np.from_dlpack(self._main(image, *self._weights))
