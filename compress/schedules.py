"""Phase generators: how long to train at which sparsity. No model."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What a run may spend. `dense_epochs` is 0 when trained weights are given."""

    sparsity: float = 0.5  # share of units to remove from each layer
    dense_epochs: int = 0
    epochs: int = 180  # after pruning

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"pruning rate is {self.sparsity}: expected at least 0 and less than 1")
        if self.dense_epochs < 0 or self.epochs < 0:
            raise ValueError(f"{min(self.dense_epochs, self.epochs)} epochs: expected 0 or more")


@dataclass(frozen=True)
class Phase:
    """Prune to `sparsity` if that is more than before, then train for `epochs`."""

    name: str
    epochs: int
    sparsity: float


def one_shot(budget: Budget) -> Iterator[Phase]:
    """All at once, then fine-tuning with a fixed mask."""
    yield Phase("dense", budget.dense_epochs, 0.0)
    yield Phase("fine-tune", budget.epochs, budget.sparsity)


def unpruned(budget: Budget) -> Iterator[Phase]:
    """Training alone: from scratch, or the same fine-tuning that pruned networks get."""
    yield Phase("dense", budget.dense_epochs, 0.0)
    if not budget.dense_epochs:
        yield Phase("fine-tune", budget.epochs, 0.0)
