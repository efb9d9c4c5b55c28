"""Phase generators: how long to train at which sparsity. No model."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kerf.compress.training.learning_rate import LearningRate
from kerf.errors import BadInput


@dataclass(frozen=True)
class Budget:
    """What a run may spend. `dense_epochs` is 0 when trained weights are given."""

    sparsity: float = 0.5  # share to remove, of what the recipe counts: units of each layer, channels, MACs
    dense_epochs: int = 0
    epochs: int = 180  # for pruning and all that follows
    steps: int = 1  # of a gradual schedule

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput(f"{self.steps} pruning steps: expected at least 1")
        if not 0 <= self.sparsity < 1:
            raise BadInput(f"pruning rate is {self.sparsity}: expected at least 0 and less than 1")
        if self.dense_epochs < 0 or self.epochs < 0:
            raise BadInput(f"{min(self.dense_epochs, self.epochs)} epochs: expected 0 or more")


@dataclass(frozen=True)
class Lessons:
    """What the networks of earlier phases teach: `weight` of their answers in the loss, at that temperature."""

    weight: float
    temperature: float


@dataclass(frozen=True)
class Phase:
    """Prune to `sparsity` if that is more than before, then train for `epochs`, under pressure or not."""

    name: str
    epochs: int
    sparsity: float
    pressure: bool = False
    rate: LearningRate | None = None  # in place of the run's own
    snapshot: bool = False  # the network that it ends with is kept, to teach; not while a pressure is attached
    part: float = 1.0  # of the layers, from the first on, that are pruned to it
    guarded: bool = False  # the network it begins with stays where no epoch is better on the validation part
    lessons: Lessons | None = None  # of all snapshots so far, in place of those of the dense network


def dense_epochs(phases: Iterable[Phase]) -> int:
    """For how many epochs a network is trained before any of it is pruned, and before a pressure acts on it."""
    before = itertools.takewhile(lambda phase: not (phase.pressure or phase.sparsity), phases)
    return sum(phase.epochs for phase in before)


def one_shot(budget: Budget) -> Iterator[Phase]:
    """All at once, then fine-tuning; in `steps` equal steps with equal shares of the epochs if there are more."""
    yield Phase("dense", budget.dense_epochs, 0.0)
    for step in range(1, budget.steps + 1):
        epochs = budget.epochs * step // budget.steps - budget.epochs * (step - 1) // budget.steps
        name = "fine-tune" if step == budget.steps else f"fine-tune, step {step} of {budget.steps}"
        yield Phase(name, epochs, budget.sparsity * step / budget.steps)


def layer_by_layer(budget: Budget, turns: int) -> Iterator[Phase]:
    """From the first layer to the last, in equal turns, with an equal share of the epochs behind each."""
    yield Phase("dense", budget.dense_epochs, 0.0)
    for turn in range(1, turns + 1):
        epochs = budget.epochs * turn // turns - budget.epochs * (turn - 1) // turns
        yield Phase(f"fine-tune, turn {turn} of {turns}", epochs, budget.sparsity, part=turn / turns)


def press_then_prune(budget: Budget, rate: float = 0.0) -> Iterator[Phase]:
    """Training under pressure, from scratch or for the first half of the epochs; pruning; fine-tuning without it.

    For methods whose papers train the network under the pressure from its first step; `press_trained` is for those that
    are defined on a trained one. `rate`: the highest learning rate under pressure, along a cosine, in place of
    the run's.
    """
    own = LearningRate(rate, warmup=0, policy="cos_step") if rate else None
    first = budget.dense_epochs or budget.epochs // 2
    if not budget.dense_epochs:
        yield Phase("dense", 0, 0.0)
    yield Phase("sparse training", first, 0.0, pressure=True, rate=own)
    yield Phase("fine-tune", budget.epochs - (0 if budget.dense_epochs else first), budget.sparsity)


def press_trained(
    budget: Budget, most: int | None = None, guarded: bool = False, share: float = 0.5, rate: float = 0.0
) -> Iterator[Phase]:
    """A trained network under pressure, for that share of the epochs or the `most` given; pruning; fine-tuning.

    Where that is `guarded`, it leaves a network no worse than it found it. `rate`: a fixed learning rate under
    pressure, in place of the run's own.
    """
    if not 0 < share <= 1 or rate < 0:
        raise BadInput(f"share {share:g} of the epochs, rate {rate:g}: expected above 0 to 1, and 0 or more")
    first = min(budget.epochs, math.ceil(budget.epochs * share - 1e-9) if most is None else most)
    own = LearningRate(rate, warmup=0, policy="fixed") if rate else None
    yield Phase("dense", budget.dense_epochs, 0.0)
    yield Phase("under pressure", first, 0.0, pressure=True, rate=own)
    yield Phase("fine-tune", budget.epochs - first, budget.sparsity, guarded=guarded)


def prune_while_training(budget: Budget) -> Iterator[Phase]:
    """All epochs under a pressure that ends with the units dead or equal, so that nothing is left to repair."""
    yield Phase("dense", budget.dense_epochs, 0.0)
    yield Phase("prune", budget.epochs, 0.0, pressure=True)
    yield Phase("trimmed", 0, budget.sparsity)


def within_training(budget: Budget) -> Iterator[Phase]:
    """One course of training, from scratch or from trained weights, under a pressure that prunes on its way."""
    yield Phase("dense", 0, 0.0)
    yield Phase("train and prune", budget.dense_epochs + budget.epochs, 0.0, pressure=True)
    yield Phase("trimmed", 0, budget.sparsity)


def narrow_first(budget: Budget) -> Iterator[Phase]:
    """Pruning before any training, for methods that keep the widths alone."""
    yield Phase("dense", 0, 0.0)
    yield Phase("train", budget.dense_epochs + budget.epochs, budget.sparsity)


def unpruned(budget: Budget) -> Iterator[Phase]:
    """Training alone: from scratch, or the same fine-tuning that pruned networks get."""
    yield Phase("dense", budget.dense_epochs, 0.0)
    if not budget.dense_epochs:
        yield Phase("fine-tune", budget.epochs, 0.0)
