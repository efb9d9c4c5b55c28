"""train() and prune_finetune(): the two functions of the RNI authors' repository, from a notebook, on this pruner.

Paper: Suteu and Guo, "Receding Neuron Importances for Structured Pruning", 2022, arXiv 2204.06404
Code:  the authors' repository of the same name
Differs: the best epoch is chosen on a tenth of the training images that is held out (the authors choose it on the test
    images; here `test_acc` decides nothing). The seed is set before the network is built. Models that come back have
    plain batch norms (rni: γ = σ(w), β = 0, the same outputs, so state dicts and exports are ordinary ones);
    prune_finetune ranks by that γ, and goes on from w = logit(γ) with the sigmoid kept and the penalty off. The model
    given is left as it was. Exactly as many channels go as were asked for; every layer keeps 3. Images are normalised
    and networks are built as everywhere here. GPUs, and CPUs that have it, multiply in bf16.
"""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kerf.compress.data.sets import EMBEDDED, Data, Options, open_data
from kerf.compress.methods.rni import LEAST, Receding, SigmoidBatchNorm2d, rni
from kerf.compress.methods.slimming import slimming
from kerf.compress.methods.ucs import ucs
from kerf.compress.models import MODELS, create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import Recipe, check, prune
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Plan, Pressure
from kerf.compress.training.progress import Reporter
from kerf.compress.training.train import Optim, State, evaluate, fit, plan_of
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput

DATA_SETS = ("cifar10", "cifar100", "digits")  # the last is embedded: scikit-learn's, without a folder
_paths: dict[str, Path] = {}


def set_dataset_path(name: str, path: str | PathLike) -> None:
    """The folder with cifar-10-batches-py or cifar-100-python, that folder itself, or one of train/<class>/ images."""
    _known("data set", name, DATA_SETS)
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no folder {path}: expected the one that {name} is stored in")
    _paths[name] = Path(path)


def train(
    dataset: str = "cifar10",
    arch: str = "vgg16",
    method: str = "rni",
    reg_weight: float = 1e-4,
    b: float = 3,
    epochs: int = 160,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cuda:0",
) -> tuple[nn.Module, dict[str, Any]]:
    """A network trained from scratch, on the CPU, and logs: "test_acc" and "val_acc", shares by epoch, "best_epoch".

    reg_weight: of the penalty of rni and l1. b: the shift of rni's.
    """
    _known("architecture", arch, MODELS)
    recipe = _recipe(method, reg_weight, b, seed)
    data = _open(dataset, epochs, batch_size, device)
    torch.manual_seed(seed)
    model = create(arch, data.num_classes, data.image_size)
    if (scale := METHODS[method].scale) is not None:
        for norm in _norms(model):
            nn.init.constant_(norm.weight, scale)
    return _fit(model, recipe.pressure, data, epochs, lr, seed, device)


def prune_finetune(
    model: nn.Module,
    dataset: str = "cifar10",
    method: str = "rni",
    prune_pc: float = 0.5,
    epochs: int = 160,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cuda:0",
) -> tuple[nn.Module, dict[str, Any]]:
    """A narrower copy of `model`, fine-tuned without a penalty, on the CPU, and its logs as those of train().

    prune_pc: share of the channels to remove, of all together (rni, l1) or of each layer (ucs).
    """
    recipe, budget = _recipe(method), Budget(prune_pc)
    METHODS[method].check(model)
    data = _open(dataset, epochs, batch_size, device)
    model = copy.deepcopy(model).cpu().eval()
    example = torch.zeros(1, 3, data.image_size, data.image_size)
    if (classes := model(example).shape[1]) != data.num_classes:
        raise BadInput(f"the model has {classes} classes, {dataset} has {data.num_classes}")
    graph = DependencyGraph.trace(model, example)
    check(model, recipe, graph, example, budget.sparsity)
    prune(model, recipe, graph, example, budget.sparsity)
    return _fit(model, METHODS[method].finetune(), data, epochs, lr, seed, device)


class Kept(Receding):
    """Fine-tuning: the sigmoid stays, the penalty is off. Unlike its base it starts from γ = σ(w), not near it."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0)

    @torch.no_grad()
    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        for norm in _norms(model):
            norm.weight.copy_(norm.weight.clamp(1e-30, 1 - 1e-6).logit())
            norm.__class__ = SigmoidBatchNorm2d
        self.attached = True

    loss = Pressure.loss


def _recipe(method: str, reg_weight: float = 0.0, b: float = 0.0, seed: int = 0) -> Recipe:
    _known("method", method, METHODS)
    return METHODS[method].recipe(Settings(min_width=LEAST, seed=seed), reg_weight, b)


def _open(dataset: str, epochs: int, batch_size: int, device: str) -> Data:
    _known("data set", dataset, DATA_SETS)
    if epochs < 1 or batch_size < 1:
        raise BadInput(f"{epochs} epochs of batches of {batch_size}: expected 1 or more of both")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f'no device {device} here ({reason}): pass device="cpu"') from None
    if dataset not in _paths and dataset not in EMBEDDED:
        raise BadInput(f'where is {dataset}? Call set_dataset_path("{dataset}", folder) first')
    data = open_data(dataset, Options(path=_paths.get(dataset), train_batch=batch_size))
    for note in data.notes:
        Reporter().say(note)
    return data


def _fit(
    model: nn.Module, pressure: Pressure, data: Data, epochs: int, lr: float, seed: int, device: str
) -> tuple[nn.Module, dict[str, Any]]:
    milestones = (math.ceil(epochs / 2), math.ceil(epochs * 3 / 4))
    rate = LearningRate(lr, epochs, warmup=0, policy="step", gamma=0.1, milestones=milestones)
    optim = Optim(rate, nesterov=True, weight_decay=1e-4)
    test_acc: list[float] = []

    def measure(_: State) -> None:
        test_acc.append(evaluate(model, data.test, device).top1 / 100)

    # none of these looks at channels: they take every batch norm
    pressure.attach(model, DependencyGraph((), ()), (), plan_of(data, optim, 0.0))
    rows = fit(model, data, optim, device=device, seed=seed, pressure=pressure, on_epoch=measure).history
    pressure.fold(model)
    best = max(range(epochs), key=lambda e: (rows[e]["val_top1"], -rows[e]["val_loss"]))
    logs = {"test_acc": test_acc, "val_acc": [row["val_top1"] / 100 for row in rows], "best_epoch": best}
    return model.cpu().eval(), logs


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def _receded(model: nn.Module) -> None:
    """Raises ValueError unless the model can come from train(method="rni")."""
    norms = _norms(model)
    inside = all(((norm.weight >= 0) & (norm.weight <= 1)).all() and not norm.bias.any() for norm in norms)
    if not inside or all((norm.weight == 1).all() for norm in norms):  # all 1: never trained
        raise BadInput('method "rni" prunes a model from train(method="rni"): scales in (0, 1) and no shifts')


def _known(kind: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise BadInput(f"unknown {kind} {name!r}: expected one of {', '.join(names)}")


@dataclass(frozen=True)
class _Way:
    recipe: Callable[[Settings, float, float], Recipe]  # settings, reg_weight, b
    scale: float | None = 0.5  # γ at first, as the authors and network slimming have it; None: PyTorch's
    finetune: Callable[[], Pressure] = Pressure
    check: Callable[[nn.Module], None] = lambda model: None  # raises ValueError for a model it cannot prune


METHODS = {
    "rni": _Way(lambda s, weight, b: rni(s, reg_weight=weight, b=b), None, Kept, _receded),
    "l1": _Way(lambda s, weight, _: slimming(s, reg_weight=weight)),
    "ucs": _Way(lambda s, *_: ucs(s)),
}
