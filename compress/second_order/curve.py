"""The error of a layer against the share of its blocks that is gone, from the eliminations of its block rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kerf.compress.second_order.elimination import Elimination

TIE = 1e-6  # relative: of equally dear blocks the one that was eliminated first goes first


def prices(found: Elimination) -> Tensor:
    """(R, I) of every block, at its place: by what the error grows where the block goes, never less than before.

    In each block row they are the slopes of the lower convex hull of its error. So the blocks of all rows whose price
    is below a bound are, for their number, those that cost least together, but for the last of a straight piece.
    """
    slopes = rising(found.loss.clamp(min=0).double())
    rank = torch.arange(slopes.shape[1], device=slopes.device, dtype=slopes.dtype)
    slopes = slopes * (1 + TIE * rank / len(rank)) + TIE * TIE * slopes.mean() * rank
    return torch.zeros_like(slopes).scatter_(1, found.order, slopes)


def rise(price: Tensor, shares: Sequence[float]) -> Tensor:
    """(len(shares),) f64: what the floor(count · share) cheapest cost together, for each share of all of ``price``."""
    cheapest = price.detach().flatten().double().cpu().sort().values
    total = torch.cat([cheapest.new_zeros(1), cheapest.cumsum(0)])
    return total[[int(len(cheapest) * share + 1e-9) for share in shares]]


def evenly(price: Tensor, share: float, multiple: int) -> Tensor:
    """(R, I) -> bool, what stays: of every block row the dearest, the floor(I · share) others gone.

    How many stay is the same for all rows, and raised to a multiple of ``multiple`` (or to I).
    """
    inputs = price.shape[1]
    left = inputs - int(inputs * share + 1e-9)
    left = min(-(-left // multiple) * multiple, inputs)
    kept = price.sort(dim=1, descending=True, stable=True).indices[:, :left]
    return torch.zeros_like(price, dtype=torch.bool).scatter_(1, kept, True)


def rising(values: Tensor) -> Tensor:
    """(R, I) -> the nearest rows that never fall, in squared error: neighbours that fall become their mean.

    Source: Ayer et al., Annals of Mathematical Statistics 1955 (pool adjacent violators).
    """
    rows = []
    for row in values.cpu().tolist():
        pools: list[tuple[float, int]] = []  # (sum, how many)
        for value in row:
            total, count = value, 1
            while pools and pools[-1][0] * count > total * pools[-1][1]:
                before, many = pools.pop()
                total, count = total + before, count + many
            pools.append((total, count))
        rows.append([total / count for total, count in pools for _ in range(count)])
    return torch.tensor(rows, dtype=values.dtype, device=values.device)
