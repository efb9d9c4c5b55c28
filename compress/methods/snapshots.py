"""Snapshots of iterative pruning: rounds of pruning and one-cycle retraining, whose networks together teach the last.

Paper: Le, Vo and Thoai, "Paying more Attention to Snapshots of Iterative Pruning: Improving Model Compression via
    Ensemble Distillation", BMVC 2020, arXiv 2006.11487 (the code was read, not the text)
Code:  github.com/lehduong/kesi
Differs: every round removes the same share of what is left of every layer, such that the last meets the target; the
    authors list shares by stage. Rounds and distillation have equal parts of the epochs (theirs: 40 each), with fewer
    rounds where there is not an epoch for each. A snapshot is the best epoch of its round by validation, which is
    nearly always the last. Momentum and weight decay in the rounds are the run's own.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.schedules import Budget, Lessons, Phase
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Moments, ParameterGroup, Plan, Pressure
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput


def cycles(budget: Budget, rounds: int, peak: float, rate: float, temperature: float) -> Iterator[Phase]:
    """Snapshots M0 … MK, each of 1 − (1 − S)^(k / K) sparsity, then their distillation into MK."""
    count = min(rounds, max(1, budget.epochs - 1))
    ends = [budget.epochs * i // (count + 1) for i in range(count + 2)]
    yield Phase("dense", budget.dense_epochs, 0.0, snapshot=True)
    for k in range(1, count + 1):
        sparsity = 1 - (1 - budget.sparsity) ** (k / count) if k < count else budget.sparsity
        one = LearningRate(peak, warmup=0, policy="one_cycle")
        yield Phase(f"cycle {k} of {count}", ends[k] - ends[k - 1], sparsity, rate=one, snapshot=True)
    one = LearningRate(rate, warmup=0, policy="one_cycle")
    last = ends[count + 1] - ends[count]
    yield Phase("distil", last, budget.sparsity, pressure=True, rate=one, lessons=Lessons(1.0, temperature))


class Adam(Pressure):
    """∂L/∂w ← m̂ / (√v̂ + 1e-8), which the optimiser follows without momentum or weight decay."""

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.moments = Moments(dict(model.named_parameters()))
        self.attached = True

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup(list(self.moments.of), momentum=0.0, nesterov=False, weight_decay=0.0)]

    def edit_gradients(self, model: nn.Module, step: int) -> None:
        for name, parameter in model.named_parameters():
            self.moments.direct(name, parameter, step)

    def state(self) -> dict[str, Tensor]:
        return self.moments.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.moments.restore(state)


def snapshots(
    settings: Settings, *, rounds: int = 5, peak: float = 0.1, rate: float = 1e-3, temperature: float = 5.0
) -> Recipe:
    """Prunes by L1 in rounds of large learning rates; the networks of all rounds then teach the last, without labels.

    peak, rate: highest learning rates of rounds and of distillation; temperature: at which answers are compared.
    """
    if rounds < 1 or temperature <= 0:
        raise BadInput(f"{rounds} rounds, temperature {temperature:g}: expected at least 1, and above 0")
    return Recipe(
        settings.channels(),
        criteria.l1,
        settings.uniform,
        partial(cycles, rounds=rounds, peak=peak, rate=rate, temperature=temperature),
        pressure=Adam(),
    )
