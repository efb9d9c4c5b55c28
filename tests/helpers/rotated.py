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


class Between(nn.Module):
    """conv 3->8, something on (B, 8, 6, 6), and a convolution that reads the result."""

    def __init__(self, function, channels: int = 8):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.function = function
        self.last = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.last(self.function(self.norm(self.first(x))))


class Lines(nn.Module):
    """A layer of lines, on pixels row by row."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2)).unsqueeze(3)


class Volumes(Lines):
    def forward(self, x):
        return self.layer(x.unsqueeze(2)).squeeze(2)


class ChannelsLast(Lines):
    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Words(nn.Module):
    """A word for every row of pixels is added to the channels."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(6, 8)

    def forward(self, x):
        return x + self.words(torch.arange(6)).T[None, :, :, None]


class Flattened(nn.Module):
    """flatten -> linear with H·W = 36 columns a channel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.hidden = nn.Linear(4 * 36, 6)
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(torch.flatten(self.conv(x), 1))))
