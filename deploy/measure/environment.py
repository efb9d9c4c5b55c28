"""What a latency depends on besides the network: machine, its state, versions. Reads, never changes."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kerf.kernels.version import code_version

DISTRIBUTIONS = ("kerf", "apache-tvm", "onnx", "onnxruntime", "openvino", "numpy")
X86 = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")
VECTOR_SETS = (*X86, "asimd", "asimddp", "i8mm", "sve")


def cpu() -> str:
    """The processor's name as its system reports it."""
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """That this process may run on; all where a system keeps no such list, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """The keys of report.json that describe where it was measured: date, cpu, machine {...}, versions {...}."""
    flags = next(
        (line.split() for line in read("/proc/cpuinfo").splitlines() if line.startswith(("flags", "Features"))), []
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "machine": {
            "cores": usable_cpus(),
            "vector_sets": [name for name in VECTOR_SETS if name in flags],
            "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "not reported",
            "load_average": round(os.getloadavg()[0], 2),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version()} | {n: v for n in DISTRIBUTIONS if (v := installed(n))},
    }


def provenance() -> dict[str, str]:
    """What a measurement of a kernel depends on besides problem and target: records of others are not comparable."""
    return {"tvm": version("apache-tvm"), "kernels": code_version("cpu"), "cpu": cpu()}


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
