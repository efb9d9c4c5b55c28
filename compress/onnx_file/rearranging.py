"""The output channels of an .onnx file's layers in an order in which blocks lose little; what it computes stays.

Orders are those of `second_order/grouping.py`. All constants that carry a group of channels follow its order, so the
graph is the same but for the order of its sums.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kerf.compress.network.graph import Group, groups_of, some, told_frozen
from kerf.compress.onnx_file.channel_rules import RULES
from kerf.compress.onnx_file.channels import Followed, Unfollowed
from kerf.compress.onnx_file.program import Sessions
from kerf.compress.second_order.grouping import grouped, saliencies
from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, captured, subgraphs


def rearrange(
    graph: Graph, batches: Sequence[Any], blocks: Collection[str], n: int, share: float, damping: float, threads: int
) -> str:
    """Moves channels of a cleaned graph, in place, for 1×n blocks of the weights ``blocks``; a line on what moved.

    ``share``: of the blocks that will go. Channels whose order is visible from outside, or that an operator reads
    through which they are not followed, keep theirs; the line says so.
    """
    found, kept = groups(graph)
    program = Sessions(graph, threads)
    taps = {layer.name: layer.taps for layer in program.layers if layer.name in blocks}
    alone = saliencies(program, batches, taps, damping, lambda _, fit: 1 / fit.variance.sum().clamp(min=1e-30).expand(
        fit.variance.numel()))  # fmt: skip
    orders = grouped(found, alone, by_l1(graph, found, taps), n, share, seed=0)
    permute(graph, found, orders)
    moved = {m.path for g in found if g.name in orders for m in g.members if m.produces} & taps.keys()
    told = f"filters of {len(moved)} of {len(taps)} layers rearranged"
    if still := [name for name in taps if name not in moved]:
        told += f" (too few, or seen outside, or not followed: {some(still)})"
    return "; ".join(filter(None, [told, kept]))


def groups(graph: Graph) -> tuple[tuple[Group, ...], str]:
    """Runs of channels that move together, and a line on the layers whose channels stay, "" if there are none.

    A member's path is the name of a constant.
    """
    seen = Followed(graph)
    for node in graph.nodes:
        rule = RULES.get(node.op_type) if node.domain in STANDARD and not subgraphs(node) else None
        bound = seen.bound.copy()
        try:
            if rule is None:
                raise Unfollowed
            rule(node, seen)
        except Unfollowed:
            seen.bound = bound  # what the rule has bound before it gave up is read otherwise: see _hold_shared
            seen.hold(node)
            for name in node.output:
                seen.lines.pop(name, None)
    for output in graph.outputs:
        if output.name in seen.lines:
            seen.channels.fix(seen.lines[output.name].labels)
    _hold_shared(seen)
    found = tuple(
        replace(g, members=tuple(replace(m, produces=(m.path, m.axis) in seen.makers) for m in g.members))
        for g in groups_of(seen.channels)
    )
    return found, "; ".join(told_frozen(seen.channels))


def _hold_shared(seen: Followed) -> None:
    """Constants of which one reader knows nothing of the channels, or that are an output, stay as they are."""
    times = Counter(name for node in seen.graph.nodes for name in node.input)
    times.update(name for node in seen.graph.nodes for part in subgraphs(node) for name in captured(part))
    ends = {o.name for o in seen.graph.outputs}
    for (name, axis), labels in seen.channels.axes.items():
        if name in ends or seen.bound[name, axis] != times[name]:
            seen.channels.hold(labels)


def by_l1(graph: Graph, found: Sequence[Group], weights: Collection[str]) -> dict[str, Tensor]:
    """For every group that may move, of channels that ``weights`` make: its channels by falling Σ|w| of their filters.

    Source: Lin et al., arXiv 2105.14713, section 3.3.
    """
    orders = {}
    for group in found:
        makers = [m for m in group.members if m.produces and m.path in weights and m.repeat == 1]
        if group.fixed or not makers:
            continue
        score = torch.zeros(group.width)
        for m in makers:
            weight = graph.constants[m.path]
            size = np.abs(np.moveaxis(weight, m.axis, 0)).reshape(weight.shape[m.axis], -1).sum(1)
            score += torch.from_numpy(size[m.offset : m.offset + group.width].astype(np.float32))
        orders[group.name] = score.argsort(descending=True, stable=True)
    return orders


def permute(graph: Graph, found: Sequence[Group], orders: Mapping[str, Tensor]) -> None:
    """Puts each named group's channels in a new order: place i gets the channel that was at order[i]."""
    indices: dict[tuple[str, int], np.ndarray] = {}
    for group in found:
        if group.name not in orders:
            continue
        order = orders[group.name].numpy()
        for m in group.members:
            index = indices.setdefault((m.path, m.axis), np.arange(graph.constants[m.path].shape[m.axis]))
            part = slice(m.offset, m.offset + len(order) * m.repeat)
            index[part] = index[part].reshape(len(order), m.repeat)[order].ravel()
    for (name, axis), index in indices.items():
        graph.note(name, np.ascontiguousarray(graph.constants[name].take(index, axis)))
