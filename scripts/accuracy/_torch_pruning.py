"""torch-pruning's group-norm pruner under our training loop: the rival in scripts/accuracy/cifar_channels.py.

The same network, data, epochs and seed: half of the epochs with its group-sparse regulariser, pruning to the MACs
target over all inner layers together, the other half fine-tuning. torch-pruning is in the extra `baselines`. This
file is not a script itself.
"""

import copy
import dataclasses
import time

from torch import nn

from kerf import files
from kerf.compress.command.job import prepare
from kerf.compress.command.parsing import parse
from kerf.compress.network import cost
from kerf.compress.training import checkpoint
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Pressure
from kerf.compress.training.train import Optim, evaluate, fit


class GroupSparsity(Pressure):
    """Adds reg · γ_g · w to the gradients of every coupled slice, γ from 2^0 to 2^4 for small groups."""

    def __init__(self, pruner):
        self.pruner = pruner

    def edit_gradients(self, model: nn.Module, step: int) -> None:
        if step % 100 == 0:
            self.pruner.update_regularizer()
        self.pruner.regularize(model)


def main(flags: list[str]) -> int:
    """The flags are those of imagenet.py; the run is written to --job_dir as its runs are."""
    import torch_pruning as tp

    args, _ = parse(flags)
    job, began = prepare(dataclasses.replace(args, method="dense", flops_target=None)), time.monotonic()
    files.write_json(args.job_dir / "config.json", args.as_json())
    model = job.model.to(job.device)
    example = job.example.to(job.device)
    teacher = copy.deepcopy(model).eval()
    dense, original = evaluate(model, job.data.test, job.device), cost.count(model, example)
    inner = {f"{name}.conv1" for name, _ in model.named_modules() if name.count(".") == 1}
    ignored = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n not in inner]
    pruner = tp.pruner.GroupNormPruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=0.95, iterative_steps=800, ignored_layers=ignored, reg=1e-4,
    )  # fmt: skip
    rate = LearningRate(args.lr, policy=args.lr_policy, warmup=0)
    half = args.finetune_epochs // 2

    def train(epochs: int, pressure: Pressure, keep_best: bool, seed: int) -> None:
        optim = Optim(
            rate.over(epochs), args.momentum, weight_decay=args.weight_decay, distill=args.distill,
            precision=args.precision,
        )  # fmt: skip
        fit(
            model, job.data, optim, device=job.device, seed=seed, pressure=pressure, teachers=[teacher],
            keep_best=keep_best,
        )  # fmt: skip

    train(half, GroupSparsity(pruner), False, args.seed * 101)
    while cost.count(model, example).macs > args.flops_target * original.macs:
        pruner.step()
    pruned = evaluate(model, job.data.test, job.device)
    train(args.finetune_epochs - half, Pressure(), True, args.seed * 101 + 1)
    final, spent = evaluate(model, job.data.test, job.device), cost.count(model, example)
    summary = {
        "method": f"torch-pruning {tp.__version__} GroupNormPruner",
        "top1_dense": dense.top1, "top1_pruned": pruned.top1,
        "top1": final.top1, "images": final.images, "macs_dense": original.macs, "macs": spent.macs,
        "params_dense": original.params, "params": spent.params, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    checkpoint.save(args.job_dir / "checkpoint" / "best.safetensors", model.state_dict())
    files.write_json(args.job_dir / "summary.json", summary)
    return 0
