"""A network under a method's pressure, before any training."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan
from tests.helpers.random_networks import difference, images, randomise

BY_MACS = Settings(by_macs=True)

# methods' own numbers with which a test is quick
FEW = {name: {"images": 16} for name in ("hrank", "ezcrop", "channel_similarity", "hessian")}
FEW["drl"] = {"images": 16, "tuned": 16, "episodes": 4, "bit_episodes": 3, "size": 0.15, "reward": "accuracy"}
AT_MOST = ("play_and_prune",)  # methods that may end before the target, for which it is the most that goes


def quickly(name: str) -> list[str]:
    """Flags that give a method such numbers."""
    return ["--set", *(f"{key}={value}" for key, value in FEW[name].items())] if name in FEW else []


SLOW_DENSENET = pytest.param("densenet40", marks=pytest.mark.slow)


def traced(arch: str) -> tuple[nn.Module, DependencyGraph, torch.Tensor]:
    model = randomise(create(arch, 10, 32), 3, 32, 32)
    x = images(2, 3, 32, 32)
    return model, DependencyGraph.trace(model, x[:1]), x


def plan(sparsity: float = 0.5, steps: int = 100) -> Plan:
    return Plan(steps, lambda _: 0.01, sparsity)


def attached_and_folded(name: str, arch: str):
    """The model and the recipe, both computing in the end, as in between, what the plain network does."""
    model, _, _, chosen, x, before = attached(name, arch)
    with torch.no_grad():
        assert difference(before, model(x)) < 1e-9
        chosen.pressure.fold(model)
        assert difference(before, model(x)) < 1e-9
    return model, chosen


def attached(name: str, arch: str, **own):
    model, graph, x = traced(arch)
    chosen = METHODS[name](Settings(by_macs=True, residual=True), **own)
    units = chosen.granularity.split(model, graph, x[:1])
    with torch.no_grad():
        before = model(x)
    chosen.pressure.attach(model, graph, units, plan())
    model.double().eval()
    return model, graph, units, chosen, x, before
