"""What the batch norms share that methods put in the place of nn.BatchNorm2d for a while."""

from torch import nn


def momentum_of(norm: nn.BatchNorm2d) -> float:
    """Counts a batch in training; the share that it has in the running statistics."""
    batches = norm.num_batches_tracked
    if norm.training and batches is not None:
        batches.add_(1)
    if norm.momentum is not None:
        return norm.momentum
    return 1 / max(1, int(batches)) if batches is not None else 0.0
