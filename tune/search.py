"""Which kernel and configuration is fastest for every distinct problem of a network, measured.

Round 0 measures every kernel's default configuration, the dense twins of sparse layers included, so that "sparse" is
kept only where it wins. Later rounds try further configurations, the problem that costs the network most first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tvm.target import Target

from deploy.build import record
from deploy.choice import Choice
from deploy.convert import Network
from deploy.environment import provenance
from deploy.passes.fuse_layers import Layer
from deploy.targets import describe
from kernels import KERNELS, reference
from kernels.kernel import candidates, dense_twin
from kernels.layout import to_planes
from kernels.problem import Problem
from kernels.record import Record, RecordBook
from tune.runners import WRONG, LocalMeasurer

BATCH = 16  # candidates built together: enough to keep the builders busy, few enough to stop in time


@dataclass(frozen=True)
class Trial:
    """One configuration to measure for one of the network's problems."""

    layer: Layer
    choice: Choice


@dataclass
class Summary:
    problems: int = 0
    measured: int = 0
    failed: int = 0
    reused: int = 0
    seconds: float = 0.0


def search(
    network: Network,
    target: Target,
    threads: int,
    book: RecordBook,
    trials: int,
    minutes: float | None = None,
    report: Callable[[str], None] = print,
) -> Summary:
    """Measure at most ``trials`` configurations within ``minutes``; whatever is in ``book`` is not measured again."""
    layers = {layer.problem: layer for layer in network.layers.values()}
    counts = Counter(layer.problem for layer in network.layers.values())
    summary = Summary(problems=len(layers))
    start = time.monotonic()
    deadline = start + 60 * minutes if minutes is not None else float("inf")
    measurer = None
    try:
        for batch in _batches(layers, counts, target, book, summary):
            batch = batch[: trials - summary.measured - summary.failed]
            if not batch or time.monotonic() >= deadline:
                break
            if measurer is None:
                measurer = LocalMeasurer(target, threads)
            _measure(measurer, batch, target, book, summary, deadline)
            best = sum(n * _best_us(p, target, book) for p, n in counts.items())
            total = f"layers together {best / 1e3:.3f} ms" if np.isfinite(best) else "not every layer measured yet"
            report(f"measured {summary.measured} configurations in {time.monotonic() - start:.0f} s, {total}")
    finally:
        if measurer is not None:
            measurer.close()
    summary.seconds = time.monotonic() - start
    return summary


def _best_us(p: Problem, target: Target, book: RecordBook) -> float:
    found = [record(q, target, book) for q in {p, dense_twin(p)}]
    return min((r.us for r in found if r), default=float("inf"))


def _batches(layers, counts, target, book, summary) -> Iterator[list[Trial]]:
    """Batches of unmeasured trials: defaults of everything, then one more configuration of each of the costliest."""
    # what timed out or crashed once, on a busy machine perhaps, is tried again by the next search
    settled = [r for r in _valid(book, target) if r.latency_us or WRONG in r.error]
    known = {(r.problem, r.kernel, str(sorted(r.config.items()))) for r in settled}
    queues: dict[Problem, list[Trial]] = {}
    first: list[Trial] = []
    for p, layer in layers.items():
        ranked = [(c.problem, c.kernel, c.kernel.configs(c.problem, target)) for c in candidates(KERNELS, p, target)]
        queue = []
        for depth in range(max(len(configs) for _, _, configs in ranked)):
            for problem, kernel, configs in ranked:
                if depth >= len(configs):
                    continue
                key = (problem.to_json(), kernel.name, str(sorted(configs[depth].items())))
                if key in known:
                    summary.reused += 1
                    continue
                known.add(key)
                trial = Trial(layer, Choice(problem, kernel.name, configs[depth]))
                (first if depth == 0 else queue).append(trial)
        queues[p] = queue
    for i in range(0, len(first), BATCH):
        yield first[i : i + BATCH]
    while any(queues.values()):
        order = sorted((p for p in queues if queues[p]), key=lambda p: -counts[p] * _best_us(p, target, book))
        yield [queues[p].pop(0) for p in order[:BATCH]]


def _valid(book: RecordBook, target: Target) -> list[Record]:
    return [r for r in book.records if (r.target, r.versions) == (describe(target), provenance())]


def _measure(measurer, batch: list[Trial], target, book, summary, deadline) -> None:
    built = measurer.build([t.choice.prim_func(target) for t in batch])
    examples: dict[str, tuple] = {}
    for trial, (library, error) in zip(batch, built):
        if time.monotonic() >= deadline:
            return
        latency: tuple[float, ...] = ()
        if library is not None:
            if trial.layer.name not in examples:
                examples[trial.layer.name] = example(trial.layer)
            x, residual, truth = examples[trial.layer.name]
            packed = trial.choice.pack(trial.layer).values()
            result = measurer.run(library, [x, *packed, trial.layer.bias, *residual], truth)
            latency, error = result.latency_us, result.error
        summary.measured += bool(latency)
        summary.failed += not latency
        choice = trial.choice
        problem = choice.problem.to_json()
        book.add(
            Record(problem, choice.kernel, dict(choice.config), describe(target), latency, provenance(), error[:500])
        )


def example(layer: Layer, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """(x, [residual], y) of a layer: random inputs in planes, and the output that every candidate must produce."""
    p, rng = layer.problem, np.random.default_rng(seed)
    x = rng.standard_normal(p.in_shape).astype(np.float32)
    residual = [rng.standard_normal(p.out_shape).astype(np.float32)] if p.residual else []
    truth = reference.conv2d(p, x, layer.weight, layer.bias, *residual)
    return to_planes(x), [to_planes(r) for r in residual], truth
