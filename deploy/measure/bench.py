"""Races engines on one network and one input: latency per engine and an honest ratio between two of them.

How it measures, and why. All engines live in one process, with the same number of threads and their own defaults
otherwise. Every round takes one sample of every engine in random order, so that drift of the machine (frequency,
neighbours) hits all alike (random interleaving, as in google/benchmark) and the ratio within a round cancels it. Thread
pools spin after a call: before a sample the process waits until they sleep, so that none is robbed of its cores and
none has to run with spinning switched off. One untimed call then brings the engine's weights back into the caches.
Outputs are compared before anything is timed. All samples are kept.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from kerf.deploy.measure.samples import listed
from kerf.deploy.runtime import dense_engine, rare_types
from kerf.errors import BadInput

NOTHING = 1e-7  # beside 1, in float32: outputs that are all smaller are equal
SAMPLE_SECONDS = 0.002  # shorter samples are dominated by timer and scheduler
LEAST_ROUNDS = 20  # below that neither a p90 nor a bootstrap means much
WARM_UP_SECONDS = 3.0
BYTES = np.dtype(np.uint8), np.dtype(np.int8)
FEWEST_ROUNDS = 5  # of networks that take so long that LEAST_ROUNDS would take more than the seconds given


@dataclass(frozen=True)
class Engine:
    name: str  # "kerf", "onnxruntime", "openvino", "onnxruntime int8", "openvino int8", "openvino bf16"
    run: Callable[[Any], Any]  # of the only input, or all by name; the only output, or all in order


class Latency(TypedDict):
    """An engine's entry of report.json's latency_ms."""

    median: float
    p10: float
    p90: float
    samples: list[float]


@dataclass(frozen=True)
class Measurement:
    """Latency of one engine. Sample i belongs to round i: it may be paired with the same round of another engine."""

    engine: str
    samples: tuple[float, ...]  # milliseconds per call, one per round, in the order they were taken
    calls: int  # calls each sample is the mean of

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def p10(self) -> float:
        return float(np.percentile(self.samples, 10))

    @property
    def p90(self) -> float:
        return float(np.percentile(self.samples, 90))

    def to_json(self) -> Latency:
        return {"median": self.median, "p10": self.p10, "p90": self.p90, "samples": list(self.samples)}


def onnxruntime_engine(path: str | Path, threads: int, provider: str = "CPUExecutionProvider") -> Engine:
    """ONNX Runtime: all graph optimisations, `threads` intra-op threads, spinning as by default.

    Raises ImportError if the installed package has no such provider, Unsupported where it refuses the file.
    """
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise ImportError(f"onnxruntime is installed without {provider}")
    session = dense_engine.onnxruntime_session(Path(path), threads, provider=provider)
    names, outputs = ([v.name for v in values] for values in (session.get_inputs(), session.get_outputs()))
    call = rare_types.runner(session)

    def run(x: Any) -> Any:
        found = call(outputs, x if isinstance(x, Mapping) else {names[0]: x})
        return found[0] if len(found) == 1 else dict(enumerate(found))

    return Engine("onnxruntime", run)


def openvino_engine(path: str | Path, threads: int, precision: str = "f32") -> Engine:
    """OpenVINO's CPU plugin: one stream, `threads` threads; `precision` of products of floats, "f32" as the others (by
    default it may take bf16) or "bf16".

    Raises ImportError if openvino is not installed (pip install '.[peers]'), Unsupported where it refuses the file.
    """
    request = dense_engine.openvino_model(Path(path), threads, precision).create_infer_request()

    def run(x: Any) -> Any:
        # Shared: without it OpenVINO alone would pay for a copy of its input and of its output.
        found = request.infer(x if isinstance(x, Mapping) else [x], share_inputs=True, share_outputs=True).to_tuple()
        return found[0] if len(found) == 1 else dict(enumerate(found))

    return Engine("openvino", run)


ENGINES = {"onnxruntime": onnxruntime_engine, "openvino": openvino_engine}


def race(
    engines: Sequence[Engine],
    x: Any,
    *,
    rounds: int | None = None,
    seconds: float = 10.0,
    tolerance: float = 1e-3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] | None = None,
) -> list[Measurement]:
    """Compares the outputs of all engines on `x`, then times them: see `interleave`.

    Raises ValueError if an engine's output differs by more than `tolerance`, relative to the largest output, from the
    first engine's that is not "kerf".
    """
    refuse_different_outputs(engines, x, tolerance)
    return interleave(engines, x, rounds=rounds, seconds=seconds, seed=seed, clock=clock, settle=settle)


def interleave(
    engines: Sequence[Engine],
    x: Any,
    *,
    rounds: int | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] | None = None,
) -> list[Measurement]:
    """Times every engine on `x` in interleaved rounds: `rounds` of them, or as many as fit in `seconds`, at least 20,
    or 5 where 20 would take twice those seconds.

    For engines that run different networks, each of which was compared with another engine before. `clock` (seconds)
    and `settle` (called before each sample, default `wait_until_idle`) exist for tests. Raises ValueError if two
    engines share a name.
    """
    names = [engine.name for engine in engines]
    if len(set(names)) < len(names):
        raise BadInput(f"engines to race are {names}; expected different names")
    if rounds is not None and rounds < 1:
        raise BadInput(f"rounds is {rounds}; expected at least 1")
    settle = settle or wait_until_idle
    limit = seconds / 4 / len(engines) if rounds is None else WARM_UP_SECONDS
    once = {engine.name: warm_up(engine, x, clock, min(WARM_UP_SECONDS, limit)) for engine in engines}
    calls = {name: math.ceil(SAMPLE_SECONDS / each) for name, each in once.items()}
    least = LEAST_ROUNDS if 2 * LEAST_ROUNDS * sum(once.values()) <= 2 * seconds else FEWEST_ROUNDS
    samples: dict[str, list[float]] = {name: [] for name in names}
    order, shuffle, start, done = list(engines), random.Random(seed).shuffle, clock(), 0
    while done < rounds if rounds is not None else done < least or clock() - start < seconds:
        shuffle(order)
        for engine in order:
            settle()
            samples[engine.name].append(1e3 * sample(engine, x, calls[engine.name], clock))
        done += 1
    return [Measurement(name, tuple(samples[name]), calls[name]) for name in names]


def sample(engine: Engine, x: Any, calls: int, clock: Callable[[], float]) -> float:
    """Seconds per call over `calls` calls, after one untimed."""
    engine.run(x)
    start = clock()
    for _ in range(calls):
        engine.run(x)
    return (clock() - start) / calls


def warm_up(engine: Engine, x: Any, clock: Callable[[], float], limit: float = WARM_UP_SECONDS) -> float:
    """Runs until two windows of five calls (of one, where a call takes long) differ by less than 5 %, or `limit`
    seconds; returns seconds per call.
    """
    windows: list[float] = []
    start = clock()
    while clock() - start < limit or not windows:
        calls = 5 if windows and 20 * windows[-1] < limit else 1
        windows.append(max(sample(engine, x, calls, clock), 1e-9))
        if any(abs(a - b) < 0.05 * a for a, b in pairwise(windows[-2:])):
            break
    return windows[-1]


def wait_until_idle(limit: float = 0.2) -> None:
    """Returns when the process's threads have stopped burning CPU time: pools spin for milliseconds after a call."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        burnt, since = time.process_time(), time.perf_counter()
        time.sleep(0.001)
        if time.process_time() - burnt < 0.2 * (time.perf_counter() - since):
            return


def refuse_different_outputs(engines: Sequence[Engine], x: Any, tolerance: float) -> None:
    """Raises ValueError unless all compute what the first dense engine does on `x`, relative to its largest output."""
    reference = next((engine for engine in engines if engine.name != "kerf"), engines[0])
    expected = [np.array(y) for y in listed(reference.run(x))]
    for engine in engines:
        for actual, truth in zip(listed(engine.run(x)), expected, strict=True):
            actual = np.array(actual)
            if actual.shape != truth.shape:
                raise BadInput(f"{engine.name} returns {actual.shape} where {reference.name} returns {truth.shape}")
            error = _difference(actual, truth)
            if not error <= max(tolerance, rare_types.rounding(truth.dtype)):  # also true for NaN
                raise BadInput(
                    f"{engine.name} and {reference.name} differ by {error:.1e} relative, more than the {tolerance:.0e} "
                    "allowed; engines that compute different things are not raced"
                )


def are_nothing(*outputs: np.ndarray) -> bool:
    """All of all of them, beside 1: one engine's sigmoid of -20 is 2e-9, another's 0."""
    return all(np.abs(y).max() < NOTHING for y in outputs)


def _difference(actual: np.ndarray, truth: np.ndarray) -> float:
    """Relative to the largest; of integers and truth values the share that differs; of bytes, which may be either
    numbers or names, the less of both.
    """
    if not truth.size:
        return 0.0
    share = np.count_nonzero(actual != truth) / truth.size
    if truth.dtype.kind != "f" and truth.dtype not in (*rare_types.NUMBERS, *BYTES):
        return share
    actual, numbers = actual.astype(np.float64), truth.astype(np.float64)
    if truth.dtype.kind == "f" and are_nothing(actual, numbers):
        return 0.0
    found = float(np.abs(actual - numbers).max()) / max(float(np.abs(numbers).max()), float(np.finfo(np.float32).tiny))
    return min(found, share) if truth.dtype in BYTES else found


class Speedup(TypedDict):
    """report.json's speedup."""

    against: str  # the fastest dense engine
    median: float
    ci95: list[float]
    conclusive: bool


def speedup(kerf: Measurement, dense: Sequence[Measurement], *, resamples: int = 2000, seed: int = 0) -> Speedup:
    """How many times faster `kerf` is than the fastest of `dense`.

    The median of the ratios within rounds, and its 95 % bootstrap interval. Rounds next to each other are alike, so
    runs of consecutive rounds are drawn instead of single ones: circular block bootstrap, Politis and Romano, 1992,
    block length n^(1/3). `conclusive` is False if the interval contains 1.0: then there is no measurable difference.
    Raises ValueError if there is nothing to compare with or the rounds do not pair up.
    """
    if not dense:
        raise BadInput("no dense engine was raced; expected at least one to compare with")
    fastest = min(dense, key=lambda m: m.median)
    if len(fastest.samples) != len(kerf.samples):
        rounds = f"{len(kerf.samples)} rounds of kerf, {len(fastest.samples)} of {fastest.engine}"
        raise BadInput(f"{rounds}; a ratio needs rounds of one race")
    ratios = np.array(fastest.samples) / np.array(kerf.samples)
    n = len(ratios)
    length = max(1, round(n ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(n, size=(resamples, -(-n // length), 1))
    picks = ((starts + np.arange(length)) % n).reshape(resamples, -1)[:, :n]
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return {
        "against": fastest.engine,
        "median": float(np.median(ratios)),
        "ci95": [float(low), float(high)],
        "conclusive": not low <= 1.0 <= high,
    }
