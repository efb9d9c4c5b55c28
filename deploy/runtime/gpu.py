"""NVIDIA GPUs at run time: TVM's CUDA library, and machine code in place of the source that TVM's libraries hold.

A library built without a driver holds CUDA source, which TVM would hand to a compiler when it is loaded. kerf compiled
that source already (kerf.kernels.cuda.compiler) and answers with the result, so that a device needs no compiler.
"""

from __future__ import annotations

import ctypes
from hashlib import sha256
from pathlib import Path

import tvm_ffi

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
CALLBACK = "tvm_callback_cuda_compile"  # what TVM calls with source

_compiled: dict[str, bytes] = {}
_compiler: list = []  # TVM's own answer, where it is in the process


def architecture() -> str | None:
    """Of the first NVIDIA GPU of this machine, "sm_90"; None without one or its driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device),
    )
    return None if any(call() for call in calls) else f"sm_{major.value}{minor.value}"


def key(source: str) -> str:
    return sha256(source.encode()).hexdigest()


def provide(key: str, code: bytes) -> None:
    """Machine code for the source of this ``key``."""
    if not _compiled:
        _compiler[:] = [f for f in [tvm_ffi.get_global_func(CALLBACK, allow_missing=True)] if f is not None]
        tvm_ffi.register_global_func(CALLBACK, _answer, override=True)
    _compiled[key] = code


def _answer(source: str) -> bytes:
    code = _compiled.get(key(source))
    if code is None and _compiler:  # a process that builds, too
        return _compiler[0](source)
    if code is None:
        raise RuntimeError("CUDA source without its machine code; load the library through kerf's own runtime")
    return code


def load_runtime(folder: Path) -> None:
    """TVM's CUDA runtime, from the folder of its libraries, into the process. Raises ImportError without a driver."""
    try:
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
        _load_cudart()
        ctypes.CDLL(str(folder / "libtvm_runtime_cuda.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(f"no NVIDIA driver or CUDA runtime on this machine ({error})") from error


def _load_cudart() -> None:
    """The CUDA runtime, of the system or of pip's nvidia packages."""
    try:
        ctypes.CDLL("libcudart.so.13", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        import nvidia  # a namespace package

        found = [f for root in nvidia.__path__ for f in Path(root).glob("*/lib/libcudart.so.13")]
        if not found:
            raise
        ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)
