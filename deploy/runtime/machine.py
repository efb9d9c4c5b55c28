"""What the machine at hand can run. No TVM: a device without the compiler asks this before it loads a bundle."""

from __future__ import annotations

import platform
from pathlib import Path

from kerf.deploy.runtime import gpu
from kerf.deploy.runtime.manifest import Needs

# Instruction sets that compilers use: LLVM's name -> the name in /proc/cpuinfo.
CHECKED = {
    **{name: name for name in ("avx", "avx2", "fma", "f16c", "bmi2", "movbe", "popcnt", "gfni", "vaes", "vpclmulqdq")},
    **{name: name for name in ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi")},
    **{f"avx512{name}": f"avx512_{name}" for name in ("vbmi2", "vnni", "bitalg", "vpopcntdq", "bf16", "fp16")},
    **{"sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm", "avxvnni": "avx_vnni"},
    **{"neon": "asimd", "sve": "sve", "sve2": "sve2", "dotprod": "asimddp", "fullfp16": "asimdhp", "i8mm": "i8mm"},
}
NAMES = {"arm64": "aarch64", "amd64": "x86_64", "AMD64": "x86_64"}


def architecture(name: str = "") -> str:
    """LLVM's name of an architecture, by default of this machine's."""
    return NAMES.get(name or platform.machine(), name or platform.machine())


def missing(needs: Needs) -> str | None:
    """Why this machine cannot run code with ``needs``; None when it can."""
    if needs["machine"] != architecture():
        return f"built for {needs['machine']}, this machine is {architecture()}"
    if "cuda" in needs and (found := gpu.architecture()) != needs["cuda"]:
        return f"built for a GPU {needs['cuda']}, this machine has {found or 'no NVIDIA GPU'}"
    has = features()
    absent = sorted(set(needs["features"]) - has)
    return f"needs {', '.join(absent)}, which this CPU lacks" if absent and has else None


def features() -> set[str]:
    """What /proc/cpuinfo says of this CPU; empty where there is no such file, as on macOS."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((text for text in lines if text.startswith(("flags", "Features"))), "").split())
