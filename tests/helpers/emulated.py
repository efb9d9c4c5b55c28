"""Kernels for another architecture, run here (scripts/maintain/_emulated.py): functions become a bundle without inputs,
whose arrays are weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm.target import Target

from kerf.deploy.compiler import targets
from kerf.deploy.runtime import program_file
from kerf.deploy.runtime.program_file import Call, Lying, Program, Root
from kerf.kernels.lowering import pass_context
from scripts.maintain._emulated import emulated


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
