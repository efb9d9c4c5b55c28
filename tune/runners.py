"""Builds and measures candidates in worker processes with time limits: a candidate that crashes or hangs costs itself.

MetaSchedule's builder and runner do the work. What is ours: the arguments are a layer's real weights (a random index
array would read out of bounds), and a candidate is timed only after its output equals the reference.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm.s_tir.meta_schedule.builder import BuilderInput, LocalBuilder
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, LocalRunner, RunnerInput
from tvm.target import Target

from deploy.runtime import use_threads
from kernels.layout import from_planes, to_planes

BUILD_SECONDS, RUN_SECONDS = 60, 30
TOLERANCE = 1e-4  # of the largest output
WRONG = "wrong result"


@dataclass(frozen=True)
class Result:
    """Latencies in microseconds, or why there are none."""

    latency_us: tuple[float, ...]
    error: str = ""


class LocalMeasurer:
    """Measures functions (x, *arrays, y) on this machine, one at a time, with ``threads`` worker threads."""

    def __init__(self, target: Target, threads: int):
        self.target = target
        self._folder = tempfile.TemporaryDirectory(prefix="kerf-tune-")
        self._arguments = Path(self._folder.name) / "arguments.npz"
        self._builder = LocalBuilder(
            max_workers=len(os.sched_getaffinity(0)),
            timeout_sec=BUILD_SECONDS,
            f_build=_compile,
            f_export=_Export(self._folder.name),
        )
        arguments = str(self._arguments)
        self._runner = LocalRunner(
            timeout_sec=RUN_SECONDS,
            evaluator_config=EvaluatorConfig(number=1, repeat=7, min_repeat_ms=4, enable_cpu_cache_flush=False),
            f_alloc_argument=_Allocate(arguments),
            f_run_evaluator=_CheckAndTime(arguments, threads),
        )

    def build(self, funcs: Sequence[tvm.tirx.PrimFunc]) -> list[tuple[str | None, str]]:
        """Compile in parallel: (path of the library or None, error)."""
        results = self._builder.build([BuilderInput(tvm.IRModule({"main": f}), self.target) for f in funcs])
        return [(r.artifact_path, r.error_msg or "") for r in results]

    def run(self, library: str, arrays: Sequence[np.ndarray], truth: np.ndarray) -> Result:
        """Check once against ``truth`` (n, c, h, w), then time."""
        np.savez(self._arguments, *arrays, truth=truth.astype(np.float32))
        (future,) = self._runner.run([RunnerInput(library, "cpu", [])])
        result = future.result()
        if result.error_msg:
            return Result((), result.error_msg.strip().splitlines()[-1])
        return Result(tuple(float(s) * 1e6 for s in result.run_secs))

    def close(self) -> None:
        self._folder.cleanup()


# The rest runs in the workers.


def _compile(module: tvm.IRModule, target: Target, _params) -> tvm.runtime.Module:
    from kernels.lowering import compile_func

    return compile_func(module["main"], target)


@dataclass(frozen=True)
class _Export:
    folder: str

    def __call__(self, module: tvm.runtime.Module) -> str:
        path = os.path.join(tempfile.mkdtemp(dir=self.folder), "kernel.so")
        module.export_library(path)
        return path


@dataclass(frozen=True)
class _Allocate:
    path: str

    def __call__(self, device, _info, _repeat):
        with np.load(self.path) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files) - 1)]
            arrays.append(to_planes(np.zeros_like(file["truth"])))
        return [[tvm.runtime.tensor(a, device) for a in arrays]]


@dataclass(frozen=True)
class _CheckAndTime:
    path: str
    threads: int

    def __call__(self, module, device, config, repeated):
        use_threads(self.threads)
        (args,) = repeated
        module["main"](*args)
        with np.load(self.path) as file:
            truth = file["truth"]
        y = from_planes(args[-1].numpy(), truth.shape)
        error = float(np.abs(y - truth).max() / max(np.abs(truth).max(), 1e-12))
        if not error <= TOLERANCE:
            raise ValueError(f"{WRONG}: differs from the reference by {error:.1e}")
        evaluator = module.time_evaluator(
            "main", device, number=config.number, repeat=config.repeat, min_repeat_ms=config.min_repeat_ms
        )
        return [float(s) for s in evaluator(*args).results]
