"""CUDA source to machine code, without a GPU: NVIDIA's run-time compiler, with a toolkit's or pip packages' headers.

Where TVM finds no driver it puts source into a library and leaves its compilation to the machine that loads it. kerf
compiles here, so that a device needs the driver alone.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from unittest.mock import patch

import tvm
from tvm.s_tir import dlight
from tvm.support import nvcc
from tvm.target import Target

from kerf.kernels.lowering import pass_context

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")


def toolkit() -> Path | None:
    """The folder that holds include/cuda_fp16.h; None without one."""
    packages = importlib.util.find_spec("nvidia")
    folders = [
        Path(f) for where in ((packages and packages.submodule_search_locations) or ()) for f in Path(where).glob("cu*")
    ]
    named = [Path(os.environ["CUDA_PATH"])] if "CUDA_PATH" in os.environ else []
    candidates = [*named, Path("/usr/local/cuda"), *sorted(folders, reverse=True)]
    return next((f for f in candidates if (f / "include" / "cuda_fp16.h").is_file()), None)


def missing() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed; pip install kerf[cuda]"
    if toolkit() is None:
        return "no CUDA headers; pip install kerf[cuda], or set CUDA_PATH to a toolkit"
    return None


def cubin(source: str, target: Target) -> bytes:
    """Machine code for the target. Raises ImportError without a compiler, ValueError where it refuses."""
    if reason := missing():
        raise ImportError(reason)
    folder = toolkit()
    with patch.dict(os.environ, CUDA_PATH=str(folder)), target:
        try:
            options = [f"-I{folder}/include/cccl"]
            return bytes(nvcc.compile_cuda(source, "cubin", str(target.attrs["arch"]), options, compiler="nvrtc"))
        except RuntimeError as error:
            raise ValueError(f"the CUDA compiler refuses what was generated: {error}") from error


def source(module: tvm.runtime.Module) -> str:
    """CUDA source of what was compiled for a GPU, wherever it hangs below ``module``. Raises ValueError without."""
    found, left = [], [module]
    while left:
        one = left.pop()
        left = [*left, *one.imports]
        found += [one.inspect_source()] if one.kind == "cuda" else []
    if len(found) != 1:
        raise ValueError(f"{len(found)} CUDA modules where one was expected")
    return found[0]


def device_code(module: tvm.runtime.Module, target: Target) -> tuple[str, bytes]:
    """Source and machine code of what runs on the GPU."""
    text = source(module)
    return text, cubin(text, target)


def schedule(target: Target) -> list[tvm.transform.Pass]:
    """Threads for what is not kerf's own: operators that TVM's importer brought, unfused."""

    @tvm.transform.module_pass(opt_level=0)
    def _schedule(module: tvm.IRModule, _context) -> tvm.IRModule:
        with target:
            return dlight.ApplyDefaultSchedule(dlight.gpu.Reduction(), dlight.gpu.Fallback())(module)

    return [_schedule]


def compile_funcs(funcs: dict[str, tvm.tirx.PrimFunc], target: Target) -> tuple[tvm.runtime.Executable, str, bytes]:
    """Kernels under these names in one library, its source and its machine code."""
    module = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in funcs.items()})
    with pass_context():
        built = tvm.compile(module, target=target)
    return built, *device_code(built.mod, target)
