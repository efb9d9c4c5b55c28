"""What code can expect of a CPU: vector registers, instructions, caches, and whether threads share the work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features
from tvm.tirx.script.builder import ir as T

# LLVM's name -> ours: products of 8-bit integers, summed by four; any order of a vector's bytes in one instruction.
FEATURES = {
    "dotprod": "dotprod",
    "i8mm": "i8mm",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "avx512vbmi": "avx512_vbmi",
}


# Bytes of data caches, first and second level, by LLVM's names of CPUs. Arm's technical reference manuals give the
# first level; the second is the chip's: Broadcom's BCM2711 (1 MiB, shared by four cores) and BCM2712, AWS's Graviton 2
# and 3; of Apple's M1 both are what macOS says (hw.perflevel0.l1dcachesize and l2cachesize, shared by four cores). Of
# Intel's CPUs with AVX-VNNI and no AVX-512 the Optimization Reference Manual (248966) says both, of performance cores.
CACHES = {
    "cortex-a72": (32 << 10, 1 << 20),
    "cortex-a76": (64 << 10, 512 << 10),
    "neoverse-n1": (64 << 10, 1 << 20),
    "neoverse-v1": (64 << 10, 1 << 20),
    "apple-m1": (128 << 10, 12 << 20),
    "alderlake": (48 << 10, 1280 << 10),
    "raptorlake": (48 << 10, 2 << 20),
    "sierraforest": (32 << 10, 4 << 20),  # efficiency cores alone; shared by four
}


@dataclass(frozen=True)
class Machine:
    """Made from a target, not measured: what is built must not depend on the machine that builds it."""

    lanes: tuple[int, ...]  # float32 of a vector that are worth trying, widest first
    registers: int  # of vectors
    features: frozenset[str] = frozenset()  # of FEATURES' values
    l1: int = 48 << 10  # bytes of its data caches
    l2: int = 1280 << 10

    @property
    def l1_floats(self) -> int:
        """Of inputs that stay in the first-level cache beside weights and outputs."""
        return self.l1 // 4 * 3 // 4

    @property
    def l2_floats(self) -> int:
        """Of an image that is still in the second-level cache when the next kernel reads it."""
        return self.l2 // 4

    @property
    def by_element(self) -> bool:
        """Whether instructions multiply a vector by an element of another: then weights need no broadcast."""
        return self.family == "neon"

    @property
    def family(self) -> str:
        """Of machines that take the same configurations."""
        return {(16, 32): "avx512", (8, 16): "avx2", (4, 32): "neon"}.get((self.lanes[0], self.registers), "")


def lanes_of(target: Target, dtype: str) -> int:
    """Numbers of numpy's ``dtype`` in the widest vector."""
    return machine_of(target).lanes[0] * 4 // np.dtype(dtype).itemsize


def machine_of(target: Target) -> Machine:
    return _machine(str(target))


@cache  # a network's layers ask hundreds of times
def _machine(text: str) -> Machine:
    target = Target(text)
    has = set(map(str, llvm_get_cpu_features(target)))
    features = frozenset(ours for theirs, ours in FEATURES.items() if theirs in has)
    caches = CACHES.get(str(target.attrs.get("mcpu", "")), ())
    if str(target.attrs.get("mtriple", "")).startswith(("aarch64", "arm64")):
        return Machine((4,), 32, features, *caches)
    if "avx512vl" in has:
        return Machine((16, 8), 32, features)
    if "avx2" in has:  # their second-level caches are smaller than those of CPUs with AVX-512
        return Machine((8,), 16, features, *(caches or (48 << 10, 512 << 10)))
    return Machine((4,), 32 if "neon" in has else 16, features)


def threads(target: Target) -> int:
    """Workers the code is made for."""
    return int(target.attrs.get("num-cores", 1))


def parallel_loop(target: Target):
    """The loop whose iterations threads share. A serial one on one thread: entering a parallel region costs 5 us."""
    return T.serial if threads(target) == 1 else T.parallel
