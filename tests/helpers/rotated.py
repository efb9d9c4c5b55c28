"""Networks whose channels are moved: what they compute has to stay."""

import torch
from torch import nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from tests.helpers.random_networks import difference, randomise


def rotations(graph: DependencyGraph) -> dict[str, torch.Tensor]:
    """A rotation for every group that may move, in which no channel stays where it was."""
    return {g.name: torch.arange(g.width).roll(1) for g in graph.groups if not g.fixed}


def check_function_is_kept(model: nn.Module, x: torch.Tensor) -> DependencyGraph:
    randomise(model, *x.shape[1:])
    graph = DependencyGraph.trace(model, x)
    with torch.no_grad():
        before = model(x)
        surgery.permute(model, graph, rotations(graph))
        assert difference(before, model(x)) < 1e-9
    assert len({g.name for g in graph.groups}) == len(graph.groups)
    return graph


class Rearranged(nn.Module):
    """conv 3->4 on (B, 3, 6, 6), then `function`, then a linear layer on whatever comes out."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function
        columns = function(torch.zeros(2, 4, 6, 6)).flatten(1).shape[1]
        self.out = nn.Linear(columns, 5)

    def forward(self, x):
        return self.out(self.function(self.conv(x)).flatten(1))
