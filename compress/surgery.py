"""The one file that changes parameters: permutes channels and zeroes weights, in place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.graph import DependencyGraph, Group


@torch.no_grad()
def permute(model: nn.Module, graph: DependencyGraph, orders: Mapping[str, Tensor]) -> None:
    """Put each named group's channels in a new order: position i receives the channel that was at order[i].

    ``orders`` maps group names to (width,) index tensors. Every parameter and buffer that carries the group follows, so
    the network computes the same function up to the order of summation. Raises ValueError, before anything is
    changed, for an unknown or fixed group and for what is not a permutation.
    """
    groups = {group.name: group for group in graph.groups}
    indices: dict[tuple[str, int], Tensor] = {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, order in orders.items():
        _check(name, groups.get(name), order)
        for m in groups[name].members:
            index = indices.setdefault((m.path, m.axis), torch.arange(tensors[m.path].shape[m.axis]))
            start, stop = m.offset, m.offset + len(order) * m.repeat
            index[start:stop] = index[start:stop].view(len(order), m.repeat)[order.cpu()].flatten()
    for (path, axis), index in indices.items():
        tensor = tensors[path]
        tensor.copy_(tensor.index_select(axis, index.to(tensor.device)))


def _check(name: str, group: Group | None, order: Tensor) -> None:
    if group is None:
        raise ValueError(f"no group {name!r} in this network")
    if group.fixed:
        raise ValueError(f"group {name!r} is fixed: the order of its channels is visible outside the network")
    if order.shape != (group.width,) or not torch.equal(order.cpu().sort().values, torch.arange(group.width)):
        raise ValueError(f"group {name!r}: expected a permutation of {group.width} channels, got {tuple(order.shape)}")


@torch.no_grad()
def l1_orders(model: nn.Module, graph: DependencyGraph) -> dict[str, Tensor]:
    """For every group that may move: its channels by falling Σ|w| of the filters that make them.

    Filter rearrangement of Lin et al., arXiv 2105.14713, section 3.3. Differs: filters that are added or multiplied
    together share one order, by the sum over all of them, where the authors sort some of them and leave the others.
    """
    parameters = dict(model.named_parameters())
    orders = {}
    for group in graph.groups:
        makers = [m for m in group.members if m.produces]
        if group.fixed or not makers:
            continue
        score = torch.zeros(group.width)
        for m in makers:
            filters = parameters[m.path].abs().flatten(1).sum(1).cpu()  # (O,)
            score += filters[m.offset : m.offset + group.width * m.repeat].view(group.width, m.repeat).sum(1)
        orders[group.name] = score.argsort(descending=True, stable=True)
    return orders


@torch.no_grad()
def zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """w ← w · mask for every masked parameter; masks are bool of the parameter's shape, True = keep."""
    if masks:
        torch._foreach_mul_([model.get_parameter(path) for path in masks], list(masks.values()))
