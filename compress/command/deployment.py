"""The deploying side, as a run of pruning uses it: export, and how long a network takes once built.

Here, and in no other file of compress, the two sides meet, and only where a run asks for it: TVM takes seconds to load.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from kerf.compress.command.job import Job
from kerf.compress.pruning import allocation
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import Grids, quantised


class Latency(TypedDict):
    """Of the final network, built and raced, against what was asked."""

    ms: float
    dense_ms: float
    engine: str
    asked: dict[str, object]  # allocation.json


def exported(job: Job, grids: Grids, reporter: Reporter) -> Path:
    from kerf.deploy.export import export

    path = job.args.job_dir / "model.onnx"
    export(job.model, job.example, path, grids=grids, reference=quantised(job.model, grids))
    reporter.say(f"exported {path}{' with Q/DQ, for ONNX Runtime' if grids else ''}")
    return path


def allocated_by_time(job: Job, measured: Mapping[int, allocation.Harm], reporter: Reporter) -> allocation.Allocation:
    """Shares by layer with which the built network meets the run's target. `measured`: N -> harm of 1xN blocks."""
    from kerf.deploy.export import export
    from kerf.tune.network_timer import Clock

    args = job.args
    return allocation.by_time(
        job.model, job.recipe, job.graph, job.example, measured, Clock(args.heights, args.target, args.threads),
        export, target_ms=args.latency_target_ms, speedup=args.speedup_target, say=reporter.say,
    )  # fmt: skip


def latency_of(job: Job, asked: allocation.Allocation, reporter: Reporter) -> Latency:
    from kerf.deploy.export import export
    from kerf.tune.network_timer import LEAST_SPARSE, Clock

    heights = job.args.heights
    path = export(job.model, job.example, job.args.job_dir / "model.onnx")
    ms, dense_ms, engine = Clock(heights, job.args.target, job.args.threads).network_ms(path)
    target = ""
    if asked.target_ms and asked.dense_ms:  # both are there: its target was a time
        times = f"{asked.dense_ms / asked.target_ms:.2f}x of {asked.dense_engine} then"
        target = f"; asked for {asked.target_ms:.3f} ms, {times}"
    reporter.say(f"built: {ms:.3f} ms, {dense_ms / ms:.2f}x of {engine} ({dense_ms:.3f} ms) in the same race{target}")
    blocks = " ".join(map(str, heights))
    reporter.say(f"to build it: python model_tune.py --onnx_path {path} --bsr {blocks} --sparsity {LEAST_SPARSE}")
    return {"ms": ms, "dense_ms": dense_ms, "engine": engine, "asked": asked.to_json()}
