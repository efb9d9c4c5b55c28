"""Cuts channels of a network in the middle of its training: the optimiser goes on with what is left."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph


@torch.no_grad()
def cut(model: nn.Module, graph: DependencyGraph, keep: Mapping[str, Tensor], sgd: torch.optim.SGD) -> DependencyGraph:
    """As `surgery.cut`; ``sgd`` follows the parameters that are left, each with what it had of its momentum.

    The momentum is cut as one more network, so that it loses the same rows and columns whatever the layers are.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    found = set()
    for (name, p), copied in zip(model.named_parameters(), twin.parameters(), strict=True):
        momentum = sgd.state[p].get("momentum_buffer")
        if momentum is not None:
            found.add(name)
            copied.data = momentum
    surgery.cut(twin, graph, keep)
    left = surgery.cut(model, graph, keep)
    model.to(memory_format=torch.channels_last)
    momenta, now = dict(twin.named_parameters()), dict(model.named_parameters())
    sgd.state.clear()
    for group in sgd.param_groups:
        group["params"] = [now[names[id(p)]] for p in group["params"]]
    for name in found:
        sgd.state[now[name]]["momentum_buffer"] = torch.empty_like(now[name]).copy_(momenta[name])
    return left
