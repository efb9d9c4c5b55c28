"""What the machine at hand can run. No TVM: a device without the compiler asks this before it loads a bundle."""

from __future__ import annotations

import platform
from pathlib import Path

# Instruction sets that generated code may use and that /proc/cpuinfo names the same way.
CHECKED = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
NAMES = {"arm64": "aarch64", "amd64": "x86_64", "AMD64": "x86_64"}


def architecture(name: str = "") -> str:
    """LLVM's name of an architecture, by default of this machine's."""
    return NAMES.get(name or platform.machine(), name or platform.machine())


def missing(needs: dict) -> str | None:
    """Why this machine cannot run code with ``needs`` = {machine, features}; None when it can."""
    if needs["machine"] != architecture():
        return f"built for {needs['machine']}, this machine is {architecture()}"
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return None
    line = next((text for text in info.read_text().splitlines() if text.startswith(("flags", "Features"))), "")
    absent = sorted(set(needs["features"]) - set(line.split()))
    return f"needs {', '.join(absent)}, which this CPU lacks" if absent and line.startswith("flags") else None
