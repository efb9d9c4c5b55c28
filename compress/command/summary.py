"""summary.json: the numbers of a run, and how to repeat it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TypedDict

import torch

from kerf.compress.command.deployment import Latency
from kerf.compress.command.job import Job
from kerf.compress.network import cost
from kerf.compress.pruning.allocation import Allocation
from kerf.compress.training import distributed
from kerf.compress.training.quantise import Grids, mean_bits
from kerf.compress.training.train import Metrics
from kerf.compress.units.weights import prunable


class TrainedWith(TypedDict):
    torch: str
    torchvision: str
    processes: int
    device: str


class _Always(TypedDict):
    method: str  # "evaluate" where nothing was pruned
    arch: str
    data_set: str
    N: int
    pr_target: float | None
    flops_target: float | None
    rearranged: bool | None
    top1_dense: float | None  # percent, as all of them; before pruning
    top1_pruned: float | None  # right after it
    top1: float
    top5: float
    images: int
    macs_dense: int
    macs: int
    params_dense: int
    params: int
    block_density: float
    element_density: float
    command: str
    trained_with: TrainedWith


class Integers(TypedDict):
    """What --quantise did: ``top1`` of the summary is that of model.onnx on integers, these are of the f32 network."""

    top1_f32: float
    top5_f32: float
    images: int  # that ranges were taken of
    ranges: str
    qat_epochs: int


class Summary(_Always, total=False):
    bits: dict[str, int]  # of a quantised network's layers
    mean_bits: float
    quantised: Integers
    widths: dict[str, list[int]]  # set of channels -> how many there were, how many are left
    latency: Latency  # where a time was asked for
    images_skipped: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """What a run ended with; one that evaluates alone has no more than the first three."""

    final: Metrics
    grids: Grids
    skipped: int  # images that could not be read
    dense: Metrics | None = None
    pruned: Metrics | None = None
    rearranged: bool | None = None
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)  # set -> channels that are left
    shares: Allocation | None = None
    integers: Integers | None = None


def summarise(job: Job, result: Result) -> Summary:
    """The numbers of a run. Costs and densities are counted from the zeros in the weights, not from what was asked.

    Zeros on the grid of a quantised weight cost what its other integers do.
    """
    args, model, dense, pruned, final = job.args, job.model, result.dense, result.pruned, result.final
    lowest = min(args.heights)
    layers = prunable(model, job.graph, args.full, lambda _: lowest)
    zeros = {path: model.get_parameter(path) != 0 for path in layers if not result.grids}
    spent = cost.count(model, job.example, zeros)
    summary: Summary = {
        "method": "evaluate" if args.pruned_model else job.method,
        "arch": args.arch,
        "data_set": args.data_set,
        "N": lowest,
        "pr_target": None if job.by_macs else job.budget.sparsity,
        "flops_target": 1 - job.budget.sparsity if job.by_macs else None,
        "rearranged": result.rearranged,
        "top1_dense": dense.top1 if dense else None,
        "top1_pruned": pruned.top1 if pruned else None,
        "top1": final.top1,
        "top5": final.top5,
        "images": final.images,
        "macs_dense": job.dense.macs_dense,
        "macs": spent.macs,
        "params_dense": job.dense.params_dense,
        "params": spent.params,
        "block_density": cost.block_density(model, layers, lowest),
        "element_density": cost.element_density(model, layers),
        "command": args.command(),
        "trained_with": {
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "processes": distributed.world(),
            "device": device_name(job.device),
        },
    }
    if result.grids:
        summary["bits"] = {path: grid.bits for path, grid in result.grids.items()}
        summary["mean_bits"] = mean_bits(model, result.grids)
    if result.integers:
        summary["quantised"] = result.integers
    widths = {s.name: s.width for s in job.graph.sets}
    summary["widths"] = {name: [widths[name], len(index)] for name, index in result.kept.items()}
    return summary


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
