"""Runs the CUDA source of a kernel on the CPU (cuda_on_host.h): no GPU, no CUDA compiler. Not a script itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tvm
from tvm import tirx
from tvm.target import Target
from tvm.tirx.build import codegen_build, split_host_device_mods

from kerf.kernels.cuda.emit.tile_sizes import shared_memory
from kerf.kernels.lowering import pass_context

HEADER = Path(__file__).with_suffix(".h")
# Optimised a little: half of the time goes to the compiler. Stacks are not watched, since threads have their own.
FLAGS = ("-std=c++17", "-O1", "-w", "-fsanitize=address,alignment", "--param", "asan-stack=0", "-fno-sanitize-recover")

ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}


@cache
def missing() -> str | None:
    """Why nothing can be run here; None if it can."""
    if not shutil.which("g++"):
        return "no g++"
    command = ["g++", *FLAGS, "-x", "c++", "-", "-o", os.devnull]
    tried = subprocess.run(command, input="int main() { _Float16 x = 0; return x; }", text=True, capture_output=True)
    return f"g++ without _Float16 or its sanitizers: {tried.stderr.strip()[:200]}" if tried.returncode else None


@dataclass(frozen=True)
class Launch:
    """What the host's half of a function passes to its kernel."""

    source: str  # CUDA, of the kernel's body on
    arguments: tuple[str, ...]  # names of the function's parameters, in the kernel's order
    types: tuple[str, ...]
    grid: tuple[int, int]
    threads: int
    shared_bytes: int


def lower(func: tvm.tirx.PrimFunc, target: Target) -> Launch:
    """By TVM's own pipeline."""
    pipeline, _, finalize_device = tirx.get_tir_pipeline("default")
    with pass_context():
        module = tirx.transform.BindTarget(target)(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
        host, devices = split_host_device_mods(pipeline(module))
        (device,) = devices.values()
        source = codegen_build(finalize_device()(device), target).inspect_source()
    text = host.script()
    aliases = dict(re.findall(r"(\w+) = T\.decl_buffer\(.*data=(\w+)(?:\.source)?\.data", text))
    call = re.search(r'call_ffi_kernel\("main_kernel", (.*), launch_params=\[(.*?)\]', text)
    assert call is not None, text
    values, names = call[1].split(", "), [name.strip('"') for name in call[2].split(", ")]
    sizes = dict(zip(names, (int(re.sub(r"\D", "", v.split("(")[-1])) for v in values[-len(names) :]), strict=True))
    arguments = []
    for value in values[: -len(names)]:
        name = value.split(".")[0]
        while name in aliases:
            name = aliases[name]
        arguments.append(name)
    declared = re.search(r"main_kernel\((.*?)\);", source)
    assert declared is not None, source
    signature = declared[1]
    types = tuple(re.findall(r"(\w+)\* __restrict__", signature))
    assert len(types) == len(arguments), (signature, arguments)
    body = source[source.rindex('extern "C" __global__') :]
    fixed = r"static \1* \2 = (\1*)host::make_fixed(\3 * sizeof(\1));"
    body, count = re.subn(r"__shared__ alignas\(\d+\) (\w+) (\w+)\[(\d+)\];", fixed, body)
    assert count == body.count("host::make_fixed")
    body = re.sub(r"extern __shared__ .*? (\w+)\[\];", r"uchar* \1 = host::shared;", body)
    grid, threads = (sizes["blockIdx.x"], sizes.get("blockIdx.y", 1)), sizes["threadIdx.x"]
    shared = sizes.get("tirx.use_dyn_shared_memory", 0)
    assert grid[1] <= 65535, grid
    assert threads <= 1024, threads
    assert shared <= (shared_memory(target) - 1) * 1024, shared
    return Launch(body, tuple(arguments), types, grid, threads, shared)


@dataclass(frozen=True)
class Result:
    y: np.ndarray
    conflicts: float  # turns that reading 8 rows of a matrix took, 1 at best; nan where no ldmatrix ran


def run(launch: Launch, arrays: dict[str, np.ndarray], y: np.ndarray, folder: Path) -> Result:
    """``arrays`` by the names of the function's parameters; ``y`` is filled with NaN first and read back. What is
    compiled stays in ``folder`` for the next call.

    Raises RuntimeError with what was printed if the program stops.
    """
    poisoned = np.frombuffer(b"\xff" * y.nbytes, y.dtype).reshape(y.shape)
    given = [np.ascontiguousarray({**arrays, "y": poisoned}[name]) for name in launch.arguments]
    calls = ", ".join(f"({kind}*)arrays[{i}]" for i, kind in enumerate(launch.types))
    at = launch.arguments.index("y")
    sizes = ", ".join(str(a.nbytes) for a in given)
    main = f"""
static void* arrays[{len(given)}];
static void call() {{ main_kernel({calls}); }}
int main() {{
  size_t sizes[] = {{{sizes}}};
  FILE* in = fopen("in", "rb");
  for (int i = 0; i < {len(given)}; i++) {{
    arrays[i] = malloc(sizes[i]);
    if (fread(arrays[i], 1, sizes[i], in) != sizes[i]) return 4;
  }}
  host::run(call, {launch.grid[0]}, {launch.grid[1]}, {launch.threads}, {launch.shared_bytes});
  FILE* out = fopen("out", "wb");
  fwrite(arrays[{at}], 1, sizes[{at}], out);
  printf("%ld %ld\\n", host::matrices, host::wavefronts);
  fclose(out);
  fflush(stdout);
  _exit(0);  // nothing is freed
}}
"""
    program, text = folder / "main.cpp", f'#include "{HEADER}"\n{launch.source}\n{main}'
    compiled = (folder / "main").is_file() and program.read_text() == text
    program.write_text(text)
    (folder / "in").write_bytes(b"".join(a.tobytes() for a in given))
    for command in ([] if compiled else [["g++", *FLAGS, "main.cpp", "-o", "main"]]) + [["./main"]]:
        done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[:2000]}")
    matrices, wavefronts = (int(n) for n in done.stdout.split())
    found = np.frombuffer((folder / "out").read_bytes(), y.dtype).reshape(y.shape)
    return Result(found, wavefronts / matrices if matrices else float("nan"))
