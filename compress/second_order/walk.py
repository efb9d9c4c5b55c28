"""The pruned network beside the dense one: what each layer reads and should answer, seen before it is changed.

All calibration images are at the same place of the graph at the same time, so a layer is fitted to what those before it
have really become, and a network is computed about twice whatever its depth.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kerf.compress.second_order.layer import Layer
from kerf.compress.second_order.refit import Fit, Moments

POSITIONS = 2**16  # of the images together that a layer is seen at, or DENSITY times its width
DENSITY = 48
FOLDS = 4  # parts of the images, by which damping is chosen

Pair = tuple[Any, Any]  # a value in the dense network, in the pruned one: the same object while they are alike
Values = dict[str, Pair]


class Program(Protocol):
    """A network in order of computation."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Those that can be fitted, in order."""

    def start(self, batch: Any) -> Values:
        """What is known before anything is computed."""

    def run(self, values: Values, layer: Layer | None) -> Values:
        """Goes on from where `values` are until what `layer` reads is known, and what it makes in the dense network.

        None for a layer: to the end. Values that nothing reads any more are left out.
        """

    def write(self, layer: Layer, weight: Tensor, constant: Tensor) -> None:
        """Gives the pruned network's layer ``weight`` (O, d), and ``constant`` (O,) in place of its bias."""


def walk(program: Program, batches: Iterable[Any], visit: Callable[[Layer, Fit], None], seed: int = 0) -> list[Values]:
    """Shows `visit`, layer by layer, what it may change the pruned network's layer by; the values at the end."""
    states = [program.start(batch) for batch in batches]
    generator = torch.Generator().manual_seed(seed)
    for layer in program.layers:
        sums = _Sums(layer)
        for i, state in enumerate(states):
            states[i] = program.run(state, layer)
            sums.add(states[i], i, len(states), generator)
            del states[i][layer.makes]  # the largest of all, of a layer that widens: computed again rather than held
        visit(layer, sums.fit())
    return [program.run(state, None) for state in states]


class _Sums:
    def __init__(self, layer: Layer):
        self.layer = layer
        self.folds: list[Moments] = []

    @torch.no_grad()
    def add(self, values: Values, batch: int, batches: int, generator: torch.Generator) -> None:
        layer, fold = self.layer, batch % FOLDS
        target, x = torch.as_tensor(values[layer.makes][0]), torch.as_tensor(values[layer.reads][1])
        lines = self._lines(target, batches, generator)
        x, target = layer.inputs(x, lines), layer.outputs(target, lines)
        groups = len(x)
        t = target.reshape(groups, -1, target.shape[1])
        ones = x.new_ones(x.shape[2])
        found = [x @ x.mT, t @ x.mT, x @ ones, t @ ones, t.square() @ ones]
        gram, cross, mean, answer, square = (f.double() for f in found)
        made = Moments(gram, cross, mean, answer, square, x.shape[2])
        if fold < len(self.folds):
            self.folds[fold] += made
        else:
            self.folds.append(made)

    def _lines(self, y: Tensor, batches: int, generator: torch.Generator) -> Tensor | None:
        count, each = self.layer.lines(y)
        most = max(POSITIONS, DENSITY * self.layer.weight.shape[1]) / batches
        wanted = max(1, int(most / each))
        if wanted >= count:
            return None
        return torch.randperm(count, generator=generator)[:wanted].sort().values.to(y.device)

    def fit(self) -> Fit:
        return sum(self.folds[1:], start=self.folds[0]).fit(tuple(self.folds))
