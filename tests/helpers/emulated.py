"""Code for another architecture, run here under qemu by libkerf, which is built by that architecture's own compiler.

Nothing else runs there: no Python, no TVM. Functions become a bundle without inputs, whose arrays are weights.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from kerf.deploy.compiler import targets
from kerf.deploy.embed import c_library
from kerf.deploy.runtime import program_file
from kerf.deploy.runtime.program_file import Call, Lying, Program, Root
from kerf.kernels.lowering import pass_context

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
Features\t: fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


def library(folder: Path) -> Path:
    """libkerf for that architecture, and in ``root`` what qemu shows programs of a file system of it."""
    made = c_library.export(folder, f"{TRIPLE}-gcc").folder
    (made / "root" / "proc").mkdir(parents=True)
    (made / "root" / "proc" / "cpuinfo").write_text(PROCESSOR)
    (made / "root" / "lib").symlink_to(LIBRARIES)
    return made


def emulated(runtime: Path, target: Target | str, bundle: Path, *words: Any, **env: str) -> str:
    """What the example program says of a bundle, on an emulated CPU."""
    cpu = str((targets.parse(target, 1) if isinstance(target, str) else target).attrs["mcpu"])
    variables = [word for name, value in env.items() for word in ("-E", f"{name}={value}")]
    command = [
        QEMU,
        "-cpu",
        CPUS.get(cpu, cpu),
        "-L",
        runtime / "root",
        *variables,
        runtime / "bin" / c_library.EXAMPLE,
        bundle,
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Case:
    """A kernel's function on arrays, and what it writes: an array of this shape and type."""

    function: tvm.tirx.PrimFunc
    arrays: Sequence[np.ndarray]
    shape: tuple[int, ...]
    dtype: str


def results(cases: Sequence[Case], target: Target, runtime: Path, folder: Path) -> list[np.ndarray]:
    """Of all cases, compiled into one library and called in one process."""
    module = tvm.IRModule({f"k{i}": c.function.with_attr("global_symbol", f"k{i}") for i, c in enumerate(cases)})
    with pass_context():
        built = tvm.compile(module, target=target)
    folder.mkdir()
    built.export_library(str(folder / "library.so"), **targets.linking(targets.triple(target)))
    weights = [np.ascontiguousarray(array) for case in cases for array in case.arrays]
    program_file.write_weights(folder / "weights.npz", weights)
    names = [f"y{i}" for i in range(len(cases))]
    ends = {name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in zip(names, cases)}
    step = {"engine": "kerf", "inputs": [], "outputs": names, "function": "", "weights": list(range(len(weights)))}
    plan = {"inputs": {}, "library": "library.so", "steps": [step], "values": ends}
    about = {"target": targets.describe(target), "threads": 1, "needs": targets.needs(target)}
    contents = {**about, "plans": [plan], "fallback": None, "inputs": {}, "outputs": ends}
    program_file.write(folder, contents, [[_program(cases)]])
    emulated(runtime, target, folder, "--out", folder / "y")
    raw, found = (folder / "y").read_bytes(), []
    for case in cases:
        size = int(np.prod(case.shape)) * np.dtype(case.dtype).itemsize
        found.append(np.frombuffer(raw[:size], case.dtype).reshape(case.shape))
        raw = raw[size:]
    return found


def _program(cases: Sequence[Case]) -> Program:
    tensors: list[Lying] = []
    calls, wrote, sizes, weight = [], [], [], 0
    for i, case in enumerate(cases):
        begin = len(tensors)
        for array in case.arrays:
            tensors.append(Lying(Root.WEIGHT, weight, 0, str(array.dtype), array.shape))
            weight += 1
        tensors.append(Lying(Root.STORAGE, i, 0, case.dtype, case.shape))
        sizes.append(int(np.prod(case.shape)) * np.dtype(case.dtype).itemsize)
        wrote.append(len(tensors) - 1)
        calls.append(Call(f"__tvm_ffi_k{i}", [("tensor", t) for t in range(begin, len(tensors))]))
    return Program(sizes, [], tensors, calls, wrote)
