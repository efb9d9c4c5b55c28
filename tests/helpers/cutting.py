"""Channels drawn at random, and what a network is without them."""

import torch
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph


def random_keep(graph: DependencyGraph, share: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    """Drops about `share` of every set that can be cut, and leaves a single channel of the last.

    Not of a depthwise one: with one group that is a convolution like any other, and a set of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = {s.name: torch.rand(s.width, generator=generator) >= share for s in graph.sets if not s.fixed}
    for kept in keep.values():
        kept[:2] |= kept.sum() < 2
    if keep:
        single = list(keep)[-1]
        keep[single] = torch.arange(len(keep[single])) == len(keep[single]) - 1
    return keep


@torch.no_grad()
def zero_channels(model: nn.Module, graph: DependencyGraph, keep: dict[str, Tensor]) -> None:
    """Every entry of the channels that are dropped: filters, norms and the columns that read them."""
    for s in graph.sets:
        for place in s.places if s.name in keep else ():
            gone = s.entries(place, ~keep[s.name]).nonzero().flatten()
            surgery.tensor_at(model, place[0]).index_fill_(place[1], gone, 0)
