"""What code can expect of a target: its vector registers, and whether threads share the work."""

from __future__ import annotations

from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features
from tvm.tirx.script.builder import ir as T


def vector_unit(target: Target) -> tuple[tuple[int, ...], int]:
    """(lane counts worth trying, widest first; number of vector registers)."""
    arch = str(target.attrs.get("mtriple", ""))
    if arch.startswith(("aarch64", "arm64")):
        return (4,), 32
    features = set(llvm_get_cpu_features(target))
    if "avx512vl" in features:
        return (16, 8), 32
    if "avx2" in features:
        return (8,), 16
    if "neon" in features:
        return (4,), 32
    return (4,), 16


def threads(target: Target) -> int:
    """Workers the code is made for."""
    return int(target.attrs.get("num-cores", 1))


def parallel_loop(target: Target):
    """The loop whose iterations threads share. A serial one on one thread: entering a parallel region costs 5 us."""
    return T.serial if threads(target) == 1 else T.parallel
