"""What each layer costs in accuracy: one at a time is pruned, the others stay whole; and how to share out a target.

Loss and top-1 are measured on validation images, which decide nothing about the network that is reported.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kerf.compress.data.batches import WHOLE, Batches, Part
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import scopes
from kerf.compress.pruning.recipe import Recipe, rearrange, scores
from kerf.compress.training.train import Metrics, autocast, evaluate
from kerf.errors import BadInput

LEVELS = (0.25, 0.5, 0.75, 0.9)
GRID = tuple(i / 20 for i in range(20))  # shares that are given out: 0 to 0.95


@dataclass(frozen=True)
class Sensitivity:
    """``loss``, ``top1`` (percent): a layer's weight -> a value for each of ``levels``, shares of its units removed."""

    levels: tuple[float, ...]
    loss: dict[str, tuple[float, ...]]
    top1: dict[str, tuple[float, ...]]
    dense_loss: float
    dense_top1: float
    images: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def harm(self, path: str) -> Tensor:
        """(len(GRID),) by how much the loss rises: linear between levels, from 0 at 0, never falling."""
        rise = torch.tensor([0.0, *(max(0.0, value - self.dense_loss) for value in self.loss[path])]).double()
        return interpolate((0.0, *self.levels), rise.cummax(0).values.tolist())


def interpolate(at: Sequence[float], values: Sequence[float]) -> Tensor:
    """(len(GRID),) float64: linear between the points, and beyond the last as before it."""
    end = values[-1] + (values[-1] - values[-2]) * (1 - at[-1]) / (at[-1] - at[-2])
    return torch.from_numpy(np.interp(GRID, [*at, 1.0], [*values, end]))


class _First:
    """The first batches of a split."""

    def __init__(self, of: Batches, count: int):
        self.of, self.count = of, count
        self.size, self.names, self.skipped = of.size, of.names, of.skipped

    def __len__(self) -> int:
        return min(self.count, len(self.of))

    def epoch(self, epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self.of.epoch(epoch, seed, part), -(-self.count // part.count))


def measure(
    model: nn.Module,
    recipe: Recipe,
    graph: DependencyGraph,
    example: Tensor,
    images: Batches,
    batches: int,
    device: torch.device | str = "cpu",
    levels: Sequence[float] = LEVELS,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Sensitivity:
    """Prunes a copy of `model`, layer by layer, on the first `batches` of `images`.

    Raises ValueError for methods that cut channels: those of one layer are others' inputs.
    """
    if not recipe.zeroes_at_once:
        raise BadInput("sensitivity is measured for methods that zero weights in place (one_by_n, weight, filter)")
    model, part = copy.deepcopy(model).to(device), _First(images, batches)

    def sample() -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(device), y.to(device)) for x, y in part.epoch(0, 0))

    rearrange(model, recipe, graph, example, max(levels), sample)

    def tried() -> Metrics:
        with autocast("auto", torch.device(device)):  # orders layers as f32 does, in a third of the time
            return evaluate(model, part, device)

    whole = tried()
    units: Sequence[Any] = recipe.granularity.split(model, graph, example.to(device))
    loss: dict[str, tuple[float, ...]] = {}
    top1: dict[str, tuple[float, ...]] = {}

    report(0, len(units))
    for i, (unit, score) in enumerate(zip(units, scores(model, recipe, graph, units, sample))):
        weight = model.get_parameter(unit.path)
        before, found = weight.detach().clone(), []
        for level in levels:
            (keep,) = scopes.local([score], [unit], level)
            with torch.no_grad():
                weight.copy_(before * unit.mask(keep))
            found.append(tried())
        with torch.no_grad():
            weight.copy_(before)
        loss[unit.path], top1[unit.path] = tuple(m.loss for m in found), tuple(m.top1 for m in found)
        report(i + 1, len(units))
    return Sensitivity(tuple(levels), loss, top1, whole.loss, whole.top1, whole.images)


def share_out(harm: dict[str, Tensor], saved: dict[str, Tensor], target: float) -> dict[str, int]:
    """One of its choices for every layer: `saved` sums to `target` at least, and `harm` to little.

    Both: layer -> (choices,), the first of which saves nothing and harms nothing. Every layer takes the choice with the
    least harm - price · saved; the lowest price that saves enough is found by bisection (Lagrange relaxation, exact on
    the convex hull of the choices); then layers change to what harms less where enough is saved without. Raises
    ValueError when the most that can be saved is not enough.
    """
    most = float(sum(s.max() for s in saved.values()))
    if target > most * (1 + 1e-9):
        raise BadInput(f"{target:.4g} cannot be saved: at {GRID[-1]:.0%} in every layer {most:.4g} is")

    def choose(price: float) -> dict[str, int]:
        return {path: int((harm[path] - price * saved[path]).argmin()) for path in harm}

    def total(choice: dict[str, int]) -> float:
        return float(sum(saved[path][i] for path, i in choice.items()))

    low, high = 0.0, 1.0
    while total(choose(high)) < target and high < 1e18:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if total(choose(middle)) >= target else (middle, high)
    choice = choose(high)
    if total(choice) < target:  # harm without end somewhere: only everything is enough
        choice = {path: int(s.argmax()) for path, s in saved.items()}
    while True:
        spare = total(choice) - target
        back = []
        for path, i in choice.items():
            milder = (saved[path] >= saved[path][i] - spare) & (harm[path] < harm[path][i])
            if bool(milder.any()):
                best = int(harm[path].masked_fill(~milder, torch.inf).argmin())
                back.append((float(harm[path][i] - harm[path][best]), path, best))
        if not back:
            return choice
        _, path, best = max(back)
        choice[path] = best


def picture(s: Sensitivity) -> str:
    """SVG: a row per layer, a cell per level, the darker the more top-1 is lost."""
    cell, left, top = (92, 18), 260, 46
    width, height = left + cell[0] * len(s.levels) + 10, top + cell[1] * len(s.loss) + 10
    worst = max(1.0, *(s.dense_top1 - t for row in s.top1.values() for t in row))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="16" font-weight="bold">top-1 with one layer pruned ({s.dense_top1:.2f} % whole, '
        f"{s.images:,} images)</text>",
    ]
    for j, level in enumerate(s.levels):
        parts.append(f'<text x="{left + cell[0] * (j + 0.5)}" y="38" text-anchor="middle">{level:.0%} removed</text>')
    for i, (path, row) in enumerate(s.top1.items()):
        y = top + cell[1] * i
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{path.removesuffix(".weight")}</text>')
        for j, value in enumerate(row):
            share = math.sqrt(min(1.0, max(0.0, (s.dense_top1 - value) / worst)))
            ink = "#fff" if share > 0.55 else "#111"
            x = left + cell[0] * j
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell[0] - 1}" height="{cell[1] - 1}" fill="#0b4f8a" '
                f'fill-opacity="{share:.2f}" stroke="#bbb"/><text x="{x + cell[0] / 2}" y="{y + 13}" '
                f'text-anchor="middle" fill="{ink}">{value:.2f}</text>'
            )
    return "".join(parts) + "</svg>\n"
