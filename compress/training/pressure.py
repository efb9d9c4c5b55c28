"""Pressure: what a method adds to training, from a penalty to parameters of its own. Knows no method and no loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training.quantise import Grids
from kerf.compress.training.sample import Sample
from kerf.errors import BadInput

BETAS = 0.9, 0.999  # of Adam
Task = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]  # model, images, labels -> loss, logits


def unseen() -> Iterator[tuple[Tensor, Tensor]]:
    raise BadInput("there are no images here to look at")


def unmeasured(model: nn.Module) -> float:
    raise BadInput("there are no images here to measure accuracy on")


@dataclass(frozen=True)
class Plan:
    """The phase that is about to be trained."""

    steps: int
    rate: Callable[[int], float]  # step -> learning rate
    sparsity: float  # what is to be removed in the end, in the recipe's own measure
    momentum: float = 0.9  # of the optimiser
    each: int = 1  # steps of an epoch
    phase: str = ""  # its name, of a loop that has phases
    sample: Sample = unseen  # the training images, whole on every process
    accuracy: Callable[[nn.Module], float] = unmeasured  # top-1 on the validation part, 0 to 1
    # of a loop that can cut channels between steps: units, which stay -> graph and units of the network that is left
    cut: Callable[[Sequence[Any], Sequence[Tensor]], tuple[DependencyGraph, Sequence[Any]]] | None = None

    @property
    def peak(self) -> float:
        """The highest learning rate, warm-up over."""
        return max(self.rate(step) for step in range(0, self.steps, max(1, self.steps // 100)))

    def travel(self, start: int = 0) -> float:
        """Sum of the learning rates from that step on: how far a gradient of one moves a weight."""
        return sum(self.rate(step) for step in range(start, self.steps))


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are optimised in another way than the rest; None means: as the rest."""

    names: Sequence[str]
    scale: float = 1.0  # of the learning rate
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None


class Pressure:
    """Does nothing. A method overrides what it needs, in one small object that its recipe shares.

    Order of calls: attach, begin (of a resumed run: restore), then per step loss, edit_gradients and after_step;
    release, when the phase is followed by a removal, and fold end it.
    """

    attached = False

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[Any], plan: Plan) -> None:
        """Adds parameters or hooks; the outputs stay as they were unless the method's header says otherwise."""
        self.attached = True

    def begin(self, model: nn.Module) -> None:
        """Before the first step of the phase, unless the run is resumed: for what is searched only once."""

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return []

    def rate_factor(self, step: int) -> float:
        """Factor of the learning rate at that step of the phase."""
        return 1.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        """``step`` counts from the start of the phase, here and below."""
        return task(model, x, y)

    def edit_gradients(self, model: nn.Module, step: int) -> None:
        """After backward, before the optimiser's step."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """After the optimiser's step, for what momentum must not move."""

    def release(self, model: nn.Module) -> None:
        """Before units are removed: what hides them goes, and what was added is no part of the network.

        A pressure overrides it that stays while the network is fine-tuned, or that its own removal takes out.
        """
        self.fold(model)

    def fold(self, model: nn.Module) -> None:
        """Takes everything out again; the outputs stay as they were, and the modules are plain ones."""
        self.attached = False

    def zeros(self) -> dict[str, Tensor]:
        """Masks of weights by their paths, False where fold has made them zero and they stay so."""
        return {}

    @property
    def grids(self) -> Grids:
        """Of layers that stay quantised after fold: what they compute on; their weights already lie there."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the model's own tensors."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None: ...

    def report(self, model: nn.Module) -> str:
        """One line on how far the pressure has got, for the log."""
        return ""


class Moments:
    """Adam's directions in place of gradients, for parameters that SGD then moves at a rate of their own.

    Source: Kingma and Ba, ICLR 2015, arXiv 1412.6980, algorithm 1. Their group has no momentum and no weight decay.
    """

    def __init__(self, parameters: Mapping[str, Tensor]):
        self.of = {name: p.detach().new_zeros(2, *p.shape) for name, p in parameters.items()}

    @torch.no_grad()
    def direct(self, name: str, parameter: Tensor, step: int) -> None:
        """∂L/∂w ← m̂ / (√v̂ + 1e-8), at that step from 0; nothing where there is no gradient."""
        if parameter.grad is None:
            return
        mean, square = self.of[name]
        mean.lerp_(parameter.grad, 1 - BETAS[0])
        square.lerp_(parameter.grad.square(), 1 - BETAS[1])
        size = (square / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(1e-8)
        parameter.grad.copy_(mean / (1 - BETAS[0] ** (step + 1)) / size)

    def state(self) -> dict[str, Tensor]:
        return {f"moments.{name}": m for name, m in self.of.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, moments in self.of.items():
            moments.copy_(state[f"moments.{name}"])


class AtRest(Pressure):
    """A pressure that is off while its parameters are still in the model: they keep their own options."""

    def __init__(self, of: Pressure):
        self.of = of

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return self.of.parameter_groups(model)


NOTHING = Pressure()
