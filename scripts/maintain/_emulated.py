"""Programs for ARM on an emulated CPU: libkerf, built by Debian's cross compiler, under qemu. No Python runs there."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from tvm.target import Target

from kerf.deploy.compiler import targets
from kerf.deploy.embed import c_library

TRIPLE = "aarch64-linux-gnu"
LIBRARIES = Path(f"/usr/{TRIPLE}/lib")  # where Debian's cross compiler has the libraries of that architecture
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
CPUS = {"cortex-a72": "cortex-a72", "cortex-a76": "cortex-a76", "neoverse-v1": "max"}  # LLVM's name: qemu's


def missing() -> str:
    """What of the tools is not there, with Debian's packages; "" for nothing."""
    if not QEMU:
        return "qemu-aarch64 is not installed (Debian: qemu-user)"
    absent = [name for name in (f"{TRIPLE}-gcc", f"{TRIPLE}-g++") if not shutil.which(name)]
    return f"{absent[0]} is not installed (Debian: g++-{TRIPLE})" if absent else ""


# ONNX Runtime reads what CPUs there are, and qemu would show it those of this machine.
PROCESSOR = """\
processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid {}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {}
CPU revision\t: 3

"""


NEWER = "atomics fphp asimdhp asimdrdm asimddp"  # features that a Cortex-A72 lacks


def library(folder: Path) -> Path:
    """libkerf for that architecture, and in ``root`` what qemu shows programs of a file system of it."""
    made = c_library.export(folder, f"{TRIPLE}-gcc").folder
    for cpu in CPUS:
        root = made / "root" / cpu
        (root / "proc").mkdir(parents=True)
        (root / "proc" / "cpuinfo").write_text(
            PROCESSOR.format(*(("", "0xd08") if cpu == "cortex-a72" else (NEWER, "0xd0b")))
        )
        (root / "lib").symlink_to(LIBRARIES)
    return made


def command(runtime: Path, target: Target | str, bundle: Path, **env: str) -> list[Any]:
    """That runs the example program on a bundle, on an emulated CPU."""
    cpu = str((targets.parse(target, 1) if isinstance(target, str) else target).attrs["mcpu"])
    variables = [word for name, value in env.items() for word in ("-E", f"{name}={value}")]
    program = runtime / "bin" / c_library.EXAMPLE
    return [QEMU, "-cpu", CPUS.get(cpu, cpu), "-L", runtime / "root" / cpu, *variables, program, bundle]


def emulated(runtime: Path, target: Target | str, bundle: Path, *words: Any, **env: str) -> str:
    """What the program says."""
    done = subprocess.run([*command(runtime, target, bundle, **env), *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{bundle}: {done.stderr}")
    return done.stdout
