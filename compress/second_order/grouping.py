"""Filters whose dear inputs are the same, put side by side, so that blocks of N filters lose little by sharing zeros.

What filters cost alone is the saliency of Optimal Brain Surgeon (`elimination.py`), w² / [P]_cc with P the inverse of
the layer's second moments. Source of the idea: filter rearrangement of Lin et al., arXiv 2105.14713, section 3.3, which
sorts by L1. Differs: filters are exchanged between blocks while the blocks that will go cost less by it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kerf.compress.network.graph import Group
from kerf.compress.second_order.compensation import check
from kerf.compress.second_order.layer import Layer
from kerf.compress.second_order.refit import Fit
from kerf.compress.second_order.walk import Program, walk

ROUNDS = 300  # in each of which every block meets one other
AGAIN = 30  # rounds after which bounds are taken anew
TRIED = 4  # filters of each block that may be exchanged in a round
TIE = 1e-6  # relative: gains below it are rounding


def saliencies(
    program: Program,
    batches: Sequence[Any],
    taps: Mapping[str, int],
    damping: float,
    importance: Callable[[Layer, Fit], Tensor],
) -> dict[str, Tensor]:
    """Layer -> (O, I) by how much the loss rises where one input of one filter goes alone; nothing is changed."""
    found: dict[str, Tensor] = {}

    def visit(layer: Layer, fit: Fit) -> None:
        check(layer, fit)
        if layer.name in taps:
            gram, _ = fit.damped(damping)
            own = layer.weight.to(gram).chunk(len(gram))
            lost = torch.cat([_lost(w, g, taps[layer.name]) for w, g in zip(own, gram)])
            found[layer.name] = (lost * importance(layer, fit).to(lost).clamp(min=0)[:, None]).float().cpu()

    walk(program, batches, visit)
    return found


def _lost(weight: Tensor, gram: Tensor, taps: int) -> Tensor:
    """(O, I) by how much E‖y − ŷ‖² grows where one input of one filter goes: weight (O, d), gram (d, d)."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    grid = inverse.view(-1, taps, inverse.shape[0] // taps, taps)
    corner = grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (I, t, t)
    own = weight.view(len(weight), -1, taps).transpose(0, 1)  # (I, O, t)
    return (own.mT * torch.linalg.solve(corner, own.mT)).sum(1).T


def grouped(
    groups: Sequence[Group],
    alone: Mapping[str, Tensor],
    otherwise: Mapping[str, Tensor],
    n: int,
    share: float,
    seed: int,
) -> dict[str, Tensor]:
    """Group -> (width,) the order of its channels, for all that ``otherwise`` orders, and begun with that.

    ``alone``: as `saliencies` gives it. Where several layers make a group's channels, all of them have a say.
    """
    found = dict(otherwise)
    for group in groups:
        makers = [m for m in group.members if m.produces and m.path in alone and m.repeat == 1]
        if group.name in found and makers and 1 < n <= group.width // 2:
            cost = [alone[m.path][m.offset : m.offset + group.width] for m in makers]
            found[group.name] = exchanged(cost, found[group.name], n, share, seed)
    return found


def exchanged(costs: Sequence[Tensor], order: Tensor, n: int, share: float, seed: int, rounds: int = ROUNDS) -> Tensor:
    """(O,) an order whose blocks of n, the share of them that costs least gone, lose no more than those of ``order``.

    ``costs``: of each layer that is ordered (O, I); a block's cost is the sum over its filters. Blocks that cost more
    than a bound stay, so min(cost, bound) is what they add; of two blocks those two
    filters change places that lower this most.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = order[: len(order) // n * n].view(-1, n).clone()
    half, some = len(blocks) // 2, min(n, TRIED)
    for step in range(rounds):
        if step % AGAIN == 0:  # bounds are those of the blocks as they have become
            bounds = [_bound(c, blocks, share) for c in costs]
            cost = torch.cat([c / bound for c, bound in zip(costs, bounds)], 1)
            weight = torch.cat([bound.expand(c.shape[1]) for c, bound in zip(costs, bounds)]) / max(bounds)
        chosen, own = torch.randperm(len(blocks), generator=generator), torch.randperm(n, generator=generator)[:some]
        one, two = chosen[:half], chosen[half : 2 * half]
        apart = cost[blocks[one][:, own, None]] - cost[blocks[two][:, None, own]]  # (half, some, some, I)
        sums = [cost[blocks[part]].sum(1) for part in (one, two)]
        now = sum(s.clamp(max=1) @ weight for s in sums)
        then = (sums[0][:, None, None] - apart).clamp(max=1) @ weight
        then += (sums[1][:, None, None] + apart).clamp(max=1) @ weight
        best, which = then.flatten(1).min(1)
        gain = (best < now * (1 - TIE)).nonzero().flatten()
        left, right = own[which[gain] // some], own[which[gain] % some]
        first, second = blocks[one[gain], left], blocks[two[gain], right]
        blocks[one[gain], left], blocks[two[gain], right] = second, first
    return torch.cat([blocks.flatten(), order[blocks.numel() :]])


def _bound(cost: Tensor, blocks: Tensor, share: float) -> Tensor:
    """Half way between the dearest of the blocks that go and the cheapest that stays."""
    whole = cost[blocks].sum(1).flatten().sort().values
    last = min(max(0, int(len(whole) * share) - 1), len(whole) - 2)
    return whole[last : last + 2].mean().clamp(min=1e-30)
