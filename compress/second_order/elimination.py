"""Elimination: the weights of a layer go one after the other, the others make up for them; what each removal costs.

Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992;
Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, arXiv 2208.11580. For 1×N blocks: the N rows of a block
row lose the same columns, so one inverse serves them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 48  # removals of a whole block row: several channels go together where there are more
MEMORY = 2**28  # bytes of the inverses that are held at once
FULL = 0.75  # inverses are made smaller when so little of them is alive


@dataclass(frozen=True)
class Elimination:
    """Of R block rows with I blocks each: in which order they go, and what that costs."""

    order: Tensor  # (R, I) input channels of each block row, the first to go first
    loss: Tensor  # (R, I) by how much E‖y − ŷ‖², summed over the N rows, grows when the channel in `order` goes


@torch.no_grad()
def eliminate(weight: Tensor, gram: Tensor, n: int, taps: int, steps: int = STEPS) -> Elimination:
    """Removes the blocks of every block row, the cheapest first, until none is left.

    ``weight``: (O, d), d = I · taps, inputs outermost; ``gram``: G = E[x xᵀ] (d, d) of its inputs, positive definite.
    A block is n rows at one input channel, C its columns. With P the inverse of G over what is left, removing it costs
    tr(W_C (P_CC)⁻¹ W_Cᵀ); then W ← W − W_C (P_CC)⁻¹ P_C,: and P ← P − P_:,C (P_CC)⁻¹ P_C,:. Where I is larger than
    `steps`, I / steps channels go at a time, and what they cost together is shared out by their single costs. The costs
    of a block row add up to tr(W G Wᵀ). Raises torch.linalg.LinAlgError if G is not positive definite.
    """
    outputs, width = weight.shape
    rows = -(-outputs // n)
    padded = F.pad(weight, (0, 0, 0, rows * n - outputs)).view(rows, n, width)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram.double())).to(gram.dtype)
    inverse = (inverse + inverse.T) / 2
    together = max(1, MEMORY // (inverse.numel() * inverse.element_size()))
    parts = [_eliminate(part, inverse, taps, steps) for part in padded.to(gram.dtype).split(together)]
    return Elimination(*(torch.cat(found) for found in zip(*parts)))


def _eliminate(weight: Tensor, inverse: Tensor, taps: int, steps: int) -> tuple[Tensor, Tensor]:
    """(r, n, d) and (d, d) -> order and loss, (r, I)."""
    rows, _, width = weight.shape
    channels = width // taps
    state = _State(weight.clone(), inverse.expand(rows, -1, -1).clone(), taps)
    order, loss = [], []
    for gone, cost in state.removals(-(-channels // steps)):
        order.append(gone)
        loss.append(cost)
    return torch.cat(order, 1), torch.cat(loss, 1)


class _State:
    """Block rows on their way: weights (r, n, a·t), inverses (r, a·t, a·t), of the a channels that are stored."""

    def __init__(self, weight: Tensor, inverse: Tensor, taps: int):
        self.weight, self.inverse, self.taps = weight, inverse, taps
        rows, stored = len(weight), weight.shape[2] // taps
        self.names = torch.arange(stored, device=weight.device).expand(rows, -1)
        self.alive = torch.ones(rows, stored, dtype=torch.bool, device=weight.device)

    def removals(self, together: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Channels that go, (r, k), the cheapest first, and what each costs, until all are gone."""
        left = self.alive.shape[1]
        while left:
            if left <= FULL * self.alive.shape[1]:
                self._compact(left)
            k = min(together, left)
            cost, which = self._costs().topk(k, largest=False)
            total = self._remove(which)
            share = cost.clamp(min=0) + 1e-30
            yield self.names.gather(1, which), share * (total / share.sum(1))[:, None]
            left -= k

    def _columns(self, which: Tensor) -> Tensor:
        """(r, k) stored channels -> (r, k·t) their columns."""
        return (which[:, :, None] * self.taps + torch.arange(self.taps, device=which.device)).flatten(1)

    def _costs(self) -> Tensor:
        """(r, a) of each stored channel alone; infinite for those that are gone."""
        rows, stored = self.alive.shape
        grid = self.inverse.view(rows, stored, self.taps, stored, self.taps)
        corner = grid.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (r, a, t, t)
        own = self.weight.view(rows, -1, stored, self.taps).transpose(1, 2)  # (r, a, n, t)
        if self.taps == 1:
            cost = own.square().sum((2, 3)) / corner[..., 0, 0]
        else:
            whole = torch.where(self.alive[:, :, None, None], corner, torch.eye(self.taps).to(corner))
            factor = torch.linalg.cholesky(whole)
            cost = torch.linalg.solve_triangular(factor, own.transpose(2, 3), upper=False).square().sum((2, 3))
        return cost.masked_fill(~self.alive, torch.inf)

    def _remove(self, which: Tensor) -> Tensor:
        """(r,) what these channels, (r, k), cost together."""
        columns, row = self._columns(which), torch.arange(len(which), device=which.device)[:, None]
        lines = self.inverse[row, columns]  # P_C,: (r, c, a·t)
        corner = lines.gather(2, columns[:, None].expand(-1, columns.shape[1], -1))
        own = self.weight.gather(2, columns[:, None].expand(-1, self.weight.shape[1], -1))  # (r, n, c)
        factor = torch.linalg.cholesky((corner + corner.mT) / 2)
        half = torch.linalg.solve_triangular(factor, lines, upper=False)  # L⁻¹ P_C,:
        own = torch.linalg.solve_triangular(factor, own.mT, upper=False)  # L⁻¹ W_Cᵀ (r, c, n)
        self.weight.baddbmm_(own.mT, half, alpha=-1)
        self.inverse.baddbmm_(half.mT, half, alpha=-1)
        self.weight.scatter_(2, columns[:, None].expand(-1, self.weight.shape[1], -1), 0.0)
        self.inverse[row, columns] = 0.0
        self.inverse.mT[row, columns] = 0.0
        self.alive.scatter_(1, which, False)
        return own.square().sum((1, 2))

    def _compact(self, left: int) -> None:
        """Stores the channels that are alive alone."""
        which = self.alive.nonzero()[:, 1].view(-1, left)
        columns, row = self._columns(which), torch.arange(len(which), device=which.device)[:, None, None]
        self.weight = self.weight.gather(2, columns[:, None].expand(-1, self.weight.shape[1], -1))
        self.inverse = self.inverse[row, columns[:, :, None], columns[:, None, :]]
        self.names = self.names.gather(1, which)
        self.alive = torch.ones_like(which, dtype=torch.bool)
