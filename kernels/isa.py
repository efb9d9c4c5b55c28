"""What a target's vector unit holds: lanes of fp32 per register to choose from, and how many registers there are."""

from __future__ import annotations

from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features


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
