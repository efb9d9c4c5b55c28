"""What the CUDA compiler makes of a kernel: registers, spills, shared memory, tensor-core instructions. No GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from tvm.target import Target

from kerf.kernels.config import Config
from kerf.kernels.cuda import KERNELS, compiler
from kerf.kernels.cuda.emit.halo import Halo
from kerf.kernels.cuda.emit.panel import Panel
from kerf.kernels.cuda.emit.stage import Tile
from kerf.kernels.kernel import Kernel
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem

SAME = (1, 1, 1, 1)
WIDE = Problem(16, 64, 28, 28, 256, (3, 3), padding=SAME, n=32, nnzb=128)
ONE = Problem(1, 512, 7, 7, 512, (3, 3), padding=SAME, n=32, nnzb=2048)  # long lists, single numbers
# Layers that each kernel is made for, in the precisions it takes.
LAYERS = {
    "conv2d_chwn_bsr_halo": ([WIDE], ("f16",)),
    "conv2d_chwn_bsr_panels": ([WIDE], ("f16",)),
    "conv2d_chwn_bsr_mma": ([WIDE, ONE], ("f16", "tf32")),
    "conv2d_chwn_bsr_simt": ([Problem(16, 64, 28, 28, 64, (3, 3), padding=SAME, n=8, nnzb=128)], ("f32", "f16")),
    "conv2d_chwn_depthwise": ([Problem(16, 64, 28, 28, 64, (3, 3), padding=SAME, groups=64)], ("f32", "f16")),
    "conv2d_chwn_dense_mma": (
        [Problem(16, 64, 28, 28, 128, (3, 3), padding=SAME), replace(ONE, n=0, nnzb=0)],
        ("f16", "tf32"),
    ),
    "conv2d_chwn_dense_simt": ([Problem(16, 64, 28, 28, 64, (3, 3), padding=SAME)], ("f32", "f16")),
}
TENSOR_CORES = tuple(name for name in LAYERS if name.endswith(("_mma", "_panels", "_halo")))


@dataclass(frozen=True)
class Usage:
    registers: int
    spilled: int  # bytes of a thread in local memory
    shared: int  # bytes of a CTA, asked for at the launch
    threads: int
    instructions: dict[str, int]


def cuobjdump() -> str | None:
    """Of the toolkit on the path, or of the triton package."""
    package = importlib.util.find_spec("triton")
    inside = [Path(package.origin).parent / "backends/nvidia/bin/cuobjdump"] if package and package.origin else []
    return shutil.which("cuobjdump") or next((str(f) for f in inside if f.is_file()), None)


def usage(kernel: Kernel, p: Problem, c: Config, target: Target) -> Usage:
    """Of a kernel's configuration. Raises FileNotFoundError without cuobjdump."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump: not found; install a CUDA toolkit or triton")
    *_, code = compiler.compile_funcs({"k": kernel.prim_func(p, c, target)}, target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        told, listing = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "-sass")
        )
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", told)[0]) for name in ("REG", "STACK", "LOCAL"))
    counted = {
        name: len(re.findall(rf"\b{name}\b", listing)) for name in ("HMMA", "LDSM", "LDGSTS", "FFMA", "LDL", "STL")
    }
    if kernel.name.endswith(("_panels", "_halo")):
        panel = (Panel if kernel.name.endswith("_panels") else Halo).of(p, c)
        shared, threads = panel.shared_bytes, panel.threads
    elif kernel.name.endswith("_mma"):
        tile = Tile.of(p, c, p.n or c["rows"])
        shared, threads = tile.shared_bytes, tile.threads
    else:
        shared, threads = 0, c["threads"]
    return Usage(registers, max(stack, local), shared, threads, counted)


def cases(target: Target) -> Iterator[tuple]:
    """(kernel, problem, configuration): the first and the last of every kernel, layer and precision."""
    for kernel in KERNELS:
        for shape, precision in product(*LAYERS[kernel.name]):
            p = replace(shape, **types_of(precision), activation="relu", residual=True)
            found = kernel.configs(p, target)
            for c in (found[0], found[-1]):
                yield kernel, p, c
