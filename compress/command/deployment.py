"""The deploying side, as a run of pruning uses it: export, and how long a network takes once built.

Here, and in no other file of compress, the two sides meet, and only where a run asks for it: TVM takes seconds to load.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from kerf import temporary
from kerf.compress.command.job import Job
from kerf.compress.pruning import allocation
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import Grids, quantised
from kerf.compress.training.sample import first


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


class Deployed(nn.Module):
    """An .onnx file as a module, image by image. ONNX Runtime leaves Q/DQ as they are: fused, integers saturate on CPUs
    without dot product instructions.
    """

    def __init__(self, path: Path):
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        images = x.cpu().numpy()
        return torch.from_numpy(np.concatenate([self.session.run(None, {"input": i[None]})[0] for i in images]))


def on_integers(job: Job, reporter: Reporter) -> tuple[Deployed, int]:
    """Writes model.onnx on integers, and model.f32.onnx, of which it is made. The first as a module, and how many
    images its ranges are of: validation images, which are part of the training images.
    """
    from kerf.deploy.export import export
    from kerf.deploy.quantise.calibration import Calibration
    from kerf.deploy.quantise.quantise import quantise

    folder, held_out = job.args.job_dir, job.data.val
    assert held_out is not None  # job.refuse_integers
    f32 = export(job.model, job.example, folder / "model.f32.onnx")
    with temporary.folder("calibration") as place:
        samples = place / "images.npy"
        images = first(lambda: held_out.epoch(0, 0), job.args.calibration)
        np.save(samples, torch.cat([x for x, _ in images]).contiguous().numpy())
        asked = Calibration(samples, job.args.quantise_ranges, job.args.calibration)
        made = quantise(f32, folder / "model.onnx", asked)
    reporter.say(f"exported {made}")
    return Deployed(made.path), made.samples


def allocated_by_time(job: Job, measured: Mapping[int, allocation.Harm], reporter: Reporter) -> allocation.Allocation:
    """Shares by layer with which the built network meets the run's target. `measured`: N -> harm of 1xN blocks."""
    from kerf.deploy.export import export
    from kerf.tune.network_timer import Clock

    args = job.args
    networks = allocation.Modules(job.model, job.recipe, job.graph, job.example, export)
    return allocation.by_time(
        networks, measured, Clock(args.heights, args.target, args.threads), target_ms=args.latency_target_ms,
        speedup=args.speedup_target, say=reporter.say,
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
