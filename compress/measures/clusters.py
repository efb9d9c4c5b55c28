"""How alike normal variables are, and which belong together. Tensors only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# correlation ρ of two channels before γ and β, from what is measured and from γ
CORRELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "measured": lambda measured, _: measured,
    "none": lambda measured, _: torch.eye(len(measured), dtype=torch.double),
    "sign": lambda _, gamma: (gamma[:, None] * gamma[None, :]).sign(),  # squared 2-Wasserstein distance
}


def distances(beta: Tensor, gamma: Tensor, rho: Tensor) -> Tensor:
    """(C, C): E (x_i − x_j)² = (β_i − β_j)² + γ_i² + γ_j² − 2 ρ_ij γ_i γ_j; 0 of a channel to itself."""
    spread = gamma.square()[:, None] + gamma.square()[None, :] - 2 * rho * gamma[:, None] * gamma[None, :]
    return ((beta[:, None] - beta[None, :]).square() + spread).clamp(min=0).fill_diagonal_(0)


def clusters(merges: Sequence[tuple[int, int]], width: int) -> Tensor:
    """(C,) labels when of a tree's merges, lowest first, so many are made that `width` clusters are left.

    Merge k joins two nodes into node C + k, as scipy numbers them.
    """
    count = len(merges) + 1
    labels = torch.arange(count)
    for k, (a, b) in enumerate(merges[: count - width]):
        labels[(labels == a) | (labels == b)] = count + k
    return labels
