"""A method of several pressures, one after the other: which acts is told by the phase's name."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training.pressure import NOTHING, ParameterGroup, Plan, Pressure, Task
from kerf.compress.training.quantise import Grids


class Stages(Pressure):
    """Is the pressure of the phase for which it was attached last; of a loop without phases the first."""

    def __init__(self, by_phase: Mapping[str, Pressure]):
        self.by_phase, self.now = by_phase, NOTHING

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[Any], plan: Plan) -> None:
        self.now = self.by_phase[plan.phase or next(iter(self.by_phase))]
        self.now.attach(model, graph, units, plan)
        self.attached = True

    def begin(self, model: nn.Module) -> None:
        self.now.begin(model)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return self.now.parameter_groups(model)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        return self.now.loss(model, x, y, task, step)

    def edit_gradients(self, model: nn.Module, step: int) -> None:
        self.now.edit_gradients(model, step)

    def fold(self, model: nn.Module) -> None:
        if self.attached:
            self.now.fold(model)
        self.attached = False

    def zeros(self) -> dict[str, Tensor]:
        return self.now.zeros()

    @property
    def grids(self) -> Grids:
        return self.now.grids

    def state(self) -> dict[str, Tensor]:
        return self.now.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.now.restore(state)

    def report(self, model: nn.Module) -> str:
        return self.now.report(model)
