"""The pruned network beside the dense one: what each layer reads and should answer, seen before it is changed.

All calibration images are at the same place of the graph at the same time, so a layer is fitted to what those before it
have really become, and a network is computed about twice whatever its depth.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kerf.compress.second_order.layer import Layer
from kerf.compress.second_order.refit import Fit, Moments

POSITIONS = 2**16  # of the images together that a layer is seen at, or DENSITY times its width
DENSITY = 48
ENOUGH = 2**18  # positions, below which other views of the images join
AGAIN = 2  # views of each image that join at most
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


More = Callable[[Any, torch.Generator], Any]  # a batch -> as many others like it


def walk(
    program: Program,
    batches: Iterable[Any],
    visit: Callable[[Layer, Fit], None],
    seed: int = 0,
    more: More | None = None,
) -> list[Values]:
    """Shows `visit`, layer by layer, what it may change the pruned network's layer by; the values at the end.

    ``more``: makes other views of the images. They join at the layer from which on the images are seen at fewer than
    ENOUGH positions, AGAIN at most of each.
    """
    given = list(batches)
    states = [program.start(batch) for batch in given]
    generator, joined = torch.Generator().manual_seed(seed), 0
    for layer in program.layers:
        for i, state in enumerate(states):
            states[i] = program.run(state, layer)
        if more and joined < AGAIN:
            positions = sum(math.prod(layer.lines(torch.as_tensor(s[layer.makes][0]))) for s in states)
            wanted = min(AGAIN, math.ceil(ENOUGH * (1 + joined) / positions) - 1)
            for _ in range(joined, wanted):
                states += [program.run(program.start(more(batch, generator)), layer) for batch in given]
            joined = max(joined, wanted)
        sums = _Sums(layer)
        for i, state in enumerate(states):
            sums.add(state, i % len(given), len(states), generator)
            del state[layer.makes]  # the largest of all, of a layer that widens: computed again rather than held
        visit(layer, sums.fit())
    return [program.run(state, None) for state in states[: len(given)]]


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
        made = Moments(*(f.double() for f in found), x.shape[2])
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
