"""Builds candidates and races them in worker processes with time limits: one that crashes or hangs costs itself alone.

The processes are those of MetaSchedule's builder and runners, but not started afresh for every batch, as its builder
does: loading the compiler takes longer than compiling a batch. The arguments are a layer's real weights (a random index
array would read out of bounds). A candidate is timed only after its output equals the reference, and candidates of one
layer are timed in interleaved rounds of one process, so that their ratios are free of what the machine did meanwhile.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import tvm
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, PopenWorker, StatusKind
from tvm.target import Target

from kerf import children, temporary
from kerf.deploy.compiler.targets import linking, on_gpu, triple
from kerf.deploy.measure.environment import usable_cpus
from kerf.deploy.runtime import gpu
from kerf.errors import DeviceLost
from kerf.kernels.cuda import compiler
from kerf.kernels.lowering import compile_func
from kerf.tune.places import Here, Place

BUILD_SECONDS, RUN_SECONDS = 60, 30
BUILDS = 200  # by one process: the compiler keeps some memory of each
ATTEMPTS = 3  # to be given a device that answers
SETTLE_SECONDS = 0.5  # until a tracker has noticed that a device is gone
COLD_CALLS, FLUSHED_BYTES = 3, 8 << 20  # more than second-level caches hold
WRONG = "wrong result"
ROUNDS, ROUND_SECONDS = 9, 0.0015  # nine: the second smallest and second largest ratio bound the median with 96 %


@dataclass(frozen=True)
class Entrant:
    """A compiled candidate and its arrays between image and output: (x, *arrays, y)."""

    library: str
    arrays: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Result:
    """Microseconds of a round each, one call after another and after a flush of the caches; or why there are none."""

    latency_us: tuple[float, ...]
    cold_us: tuple[float, ...]
    error: str = ""


class Measurer:
    """Builds here, and races at ``place``, on as many of its devices at once as it has."""

    def __init__(self, target: Target, threads: int, place: Place | None = None):
        self.target, self.threads, self.place = target, threads, place or Here()
        self._devices = self.place.devices()
        if not self._devices:
            raise DeviceLost(f"{self.place}: no device is registered")
        self._left = ExitStack()
        self._folder = self._left.enter_context(temporary.folder("tune"))
        owned = {"initializer": _begin, "initargs": (os.getpid(), str(self._folder))}
        self._number = itertools.count()
        self._builder = PopenPoolExecutor(
            max_workers=usable_cpus(), timeout=BUILD_SECONDS, maximum_process_uses=BUILDS, **owned
        )
        self._idle: SimpleQueue[PopenWorker] = SimpleQueue()
        for _ in range(self._devices):
            self._idle.put(PopenWorker(**owned))
        self._callers = ThreadPoolExecutor(max_workers=self._devices)

    def build(self, funcs: Sequence[tvm.tirx.PrimFunc]) -> list[tuple[str | None, str]]:
        """Compile in parallel: (path of the library or None, error)."""
        jobs = [(f, self.target, str(self._folder)) for f in funcs]
        results = self._builder.map_with_error_catching(lambda job: _build(*job), jobs)
        return [(r.value, "") if r.status == StatusKind.COMPLETE else (None, _why(r)) for r in results]

    def race(
        self, x: np.ndarray, entrants: Sequence[Entrant], truth: np.ndarray, rounds: int = ROUNDS, apart: int = 1
    ) -> Future[list[Result]]:
        """One result per entrant, of rounds in which each is timed once. ``x`` is as kernels take it, ``truth`` NCHW.
        ``apart``: what bytes may differ from it by.

        Whoever brings the process down is found by letting each run alone. The future raises DeviceLost when no device
        is left.
        """
        arguments = self._folder / f"arguments-{next(self._number)}.npz"
        arrays: dict[str, Any] = {
            f"{i}.{k}": a for i, entrant in enumerate(entrants) for k, a in enumerate(entrant.arrays)
        }
        truth = truth if truth.dtype == np.uint8 else truth.astype(np.float32)
        np.savez(arguments, x=x, truth=truth, apart=apart, **arrays)
        return self._callers.submit(self._race, arguments, [e.library for e in entrants], rounds)

    def _race(self, arguments: Path, libraries: list[str], rounds: int) -> list[Result]:
        everyone = list(range(len(libraries)))
        try:
            found = self._attempt(arguments, libraries, everyone, rounds)
            if isinstance(found, str):
                alone = {i: self._attempt(arguments, libraries, [i], rounds) for i in everyone}
                results = {i: Result((), (), said) if isinstance(said, str) else said[0] for i, said in alone.items()}
                sound = [i for i in everyone if results[i].latency_us]
                again = self._attempt(arguments, libraries, sound, rounds) if len(sound) > 1 else ""
                if not isinstance(again, str):
                    results |= dict(zip(sound, again))
                found = [results[i] for i in everyone]
            return found
        finally:
            arguments.unlink(missing_ok=True)

    def _attempt(self, arguments: Path, libraries: list[str], who: list[int], rounds: int) -> list[Result] | str:
        """Results of ``who``, or what became of their process. What a device lost is done again on another."""
        for attempt in itertools.count(1):
            worker = self._idle.get()
            try:
                job = (self.place, str(arguments), [(i, libraries[i]) for i in who], self.threads, rounds)
                worker.send(_run, job, timeout=RUN_SECONDS + self.place.patience)
                return [Result(*result) for result in worker.recv()]
            except Exception as error:
                worker.kill()  # with what it may still be asking a tracker for; the next job starts it afresh
                time.sleep(SETTLE_SECONDS)
                left, before = self.place.devices(), self._devices
                if not left:
                    raise DeviceLost(f"{self.place}: the last device is gone") from error
                self._devices = left
                # a tracker may still give out a device that has just gone
                if left < before or (isinstance(error, DeviceLost) and attempt < ATTEMPTS):
                    continue
                if isinstance(error, DeviceLost):
                    raise
                return f"did not finish within {RUN_SECONDS} s" if isinstance(error, TimeoutError) else last_line(error)
            finally:
                self._idle.put(worker)
        raise AssertionError("counting does not end")

    def close(self) -> None:
        self._callers.shutdown(cancel_futures=True)
        self._builder.shutdown()
        while not self._idle.empty():
            self._idle.get().kill()
        self._left.close()


def _why(result: MapResult) -> str:
    if result.status == StatusKind.TIMEOUT:
        return f"did not compile within {BUILD_SECONDS} s"
    return last_line(result.value)


def last_line(error: BaseException) -> str:
    """What an error of TVM comes down to."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:500]


# The rest runs in the workers.


def _begin(parent: int, folder: str) -> None:
    """Of a worker: it ends with the search, and leaves nothing outside the search's folder."""
    children.end_with(parent)
    children.workspace(Path(folder))


def _build(func: tvm.tirx.PrimFunc, target: Target, folder: str) -> str:
    """Path of the shared library."""
    path = os.path.join(tempfile.mkdtemp(dir=folder), "kernel.so")
    if on_gpu(target):
        built, source, code = compiler.compile_funcs({"main": func}, target)
        built.export_library(path)
        Path(f"{path}.cubin").write_bytes(code)
        Path(f"{path}.key").write_text(gpu.key(source))
        return path
    compile_func(func, target).export_library(path, **linking(triple(target)))
    return path


def _run(
    place: Place, arguments: str, libraries: list[tuple[int, str]], threads: int, rounds: int
) -> list[tuple[tuple[float, ...], tuple[float, ...], str]]:
    """The fields of each library's Result, from one device of ``place``."""
    with place.session(threads) as session, np.load(arguments) as file:
        device = place.device(session)
        x, truth = file["x"], file["truth"]
        timers: dict[int, Callable[[], tuple[float, float]]] = {}
        errors = {}
        for i, path in libraries:
            module = place.load(session, path)
            arrays = (x, *_arrays(file, i), place.pack(np.zeros_like(truth)))
            args = [tvm.runtime.tensor(a, device) for a in arrays]
            module["main"](*args)
            y = place.unpack(args[-1].numpy(), truth.shape)
            off = float(np.abs(y - truth.astype(np.float64)).max() / max(np.abs(truth).max(), 1e-12))
            # bytes differ by steps: where a sum meets a half, two ways of rounding do
            apart = file["apart"] if truth.dtype == np.uint8 else 0
            if off <= place.tolerance or np.abs(y - truth.astype(np.float64)).max() <= apart:
                timers[i] = _timer(module, device, args)
            else:
                errors[i] = f"{WRONG}: differs from the reference by {off:.1e}"
        samples: dict[int, list[tuple[float, float]]] = {i: [] for i, _ in libraries}
        order, shuffle = list(timers), random.Random(0).shuffle
        for _ in range(rounds):
            shuffle(order)
            for i in order:
                samples[i].append(timers[i]())
        return [
            (tuple(s[0] for s in samples[i]), tuple(s[1] for s in samples[i]), errors.get(i, "")) for i, _ in libraries
        ]


def _arrays(file, i: int) -> list[np.ndarray]:
    names = [name for name in file.files if name.startswith(f"{i}.")]
    return [file[name] for name in sorted(names, key=lambda name: int(name.partition(".")[2]))]


def _timer(module, device, args) -> Callable[[], tuple[float, float]]:
    """Microseconds per call: over as many calls as make a round long enough for the clock, and after flushes."""
    once = min(module.time_evaluator("main", device, number=1, repeat=3)(*args).results)
    calls = max(1, min(1000, round(ROUND_SECONDS / max(once, 1e-7))))
    warm = module.time_evaluator("main", device, number=calls, repeat=1)
    cold = module.time_evaluator("main", device, number=1, repeat=COLD_CALLS, cache_flush_bytes=FLUSHED_BYTES)
    return lambda: (1e6 * warm(*args).results[0], 1e6 * float(np.median(cold(*args).results)))
