"""summary.json: the numbers of a run, and how to repeat it."""

from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from kerf.compress.command.job import Job
from kerf.compress.network import cost
from kerf.compress.training import distributed
from kerf.compress.training.quantise import Grids, mean_bits
from kerf.compress.training.train import Metrics
from kerf.compress.units.weights import prunable


def summarise(
    job: Job, final: Metrics, grids: Grids, rearranged: bool | None, dense: Metrics | None, pruned: Metrics | None
) -> dict[str, Any]:
    """The numbers of a run. Costs and densities are counted from the zeros in the weights, not from what was asked.

    Zeros on the grid of a quantised weight cost what its other integers do.
    """
    args, model = job.args, job.model
    layers, least = prunable(model, job.graph, args.full), min(args.heights)
    zeros = {path: model.get_parameter(path) != 0 for path in layers if not grids}
    spent = cost.count(model, job.example, zeros)
    return {
        "method": "evaluate" if args.pruned_model else job.method,
        "arch": args.arch,
        "data_set": args.data_set,
        "N": least,
        "pr_target": None if job.by_macs else job.budget.sparsity,
        "flops_target": 1 - job.budget.sparsity if job.by_macs else None,
        "rearranged": rearranged,
        "top1_dense": dense.top1 if dense else None,
        "top1_pruned": pruned.top1 if pruned else None,
        "top1": final.top1,
        "top5": final.top5,
        "images": final.images,
        "macs_dense": job.dense.macs_dense,
        "macs": spent.macs,
        "params_dense": job.dense.params_dense,
        "params": spent.params,
        "block_density": cost.block_density(model, layers, least),
        "element_density": cost.element_density(model, layers),
        "command": args.command(),
        "trained_with": {
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "processes": distributed.world(),
            "device": torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else str(job.device),
        },
    } | (bits(model, grids) if grids else {})


def bits(model: nn.Module, grids: Grids) -> dict[str, Any]:
    return {"bits": {path: grid.bits for path, grid in grids.items()}, "mean_bits": mean_bits(model, grids)}
