"""Selection: scores and a ratio -> which units stay. Tensors only; knows no network."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kerf.compress.second_order.curve import evenly
from kerf.compress.units.channels import ChannelUnits
from kerf.compress.units.weights import Units, WeightUnits
from kerf.errors import BadInput

Scope = Callable[[Sequence[Tensor], Sequence[Any], float], list[Tensor]]  # bool (count,) each, True = keep


def of_the_whole(scope: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """A scope whose ratio is a share of the network as it was traced: channels cut since then are the first to go.

    So a target that is met in several steps is met as exactly as in one.
    """

    @functools.wraps(scope)
    def counted(scores: Sequence[Tensor], units: Sequence[Any], ratio: float, **floors: int) -> list[Tensor]:
        gone = [u.gone for u in units]
        if not any(gone):
            return scope(scores, units, ratio, **floors)
        widths = units[0].widths.uncut()
        whole = [replace(u, count=u.count + n, widths=widths) for u, n in zip(units, gone)]
        first = [torch.cat([s.new_full((n,), -torch.inf), s]) for s, n in zip(scores, gone, strict=True)]
        return [keep[n:] for keep, n in zip(scope(first, whole, ratio, **floors), gone)]

    return counted


@of_the_whole
def local(
    scores: Sequence[Tensor], units: Sequence[Units], ratio: float, *, least: int = 0, multiple: int = 1
) -> list[Tensor]:
    """In every layer by itself, prune the floor(count · ratio) units with the smallest scores.

    Returns one bool (count,) per layer, True = keep. Of equal scores the first is pruned first, on every device. A
    layer keeps at least `least` units, and a multiple of `multiple` (or all). Raises ValueError if ratio is outside
    [0, 1] or a score is not a number.
    """
    if not 0 <= ratio <= 1:
        raise BadInput(f"pruning ratio is {ratio}; expected a share between 0 and 1")
    keep = []
    for score, unit in zip(scores, units, strict=True):
        _check(score, unit)
        left = unit.count - math.floor(unit.count * ratio + 1e-9)  # 100 × 0.29 is 28.999…, meant as 29
        keep.append(best(score, _rounded(max(left, least), multiple, unit.count)).to(score.device))
    return keep


def in_rows(scores: Sequence[Tensor], units: Sequence[WeightUnits], ratio: float, *, multiple: int) -> list[Tensor]:
    """`local` in each row of a layer's blocks by itself: all keep equally many, a multiple of `multiple` (or all)."""
    keep = []
    for score, unit in zip(scores, units, strict=True):
        _check(score, unit)
        keep.append(evenly(score.view(-1, unit.shape[1]), ratio, multiple).flatten())
    return keep


def allotted(shares: Mapping[str, float], ratio: float, within: Scope = local) -> Callable[..., list[Tensor]]:
    """A scope in which every layer loses its own share when `ratio` is asked for, and proportionally less before.

    ``within``: how it is chosen in a layer.
    """

    def scope(scores: Sequence[Tensor], units: Sequence[Units], asked: float) -> list[Tensor]:
        return [within([s], [u], shares[u.path] * asked / ratio)[0] for s, u in zip(scores, units, strict=True)]

    return scope


def of_first(scope: Scope, part: float) -> Scope:
    """That share of the layers as `scope` has it for all of them, from the first on; the others stay whole."""

    def opened(scores: Sequence[Tensor], units: Sequence[Any], ratio: float) -> list[Tensor]:
        count = math.ceil(part * len(units) - 1e-9)
        chosen = scope(scores, units, ratio)
        return [keep if i < count else torch.ones_like(keep) for i, keep in enumerate(chosen)]

    return opened


def _rounded(width: int, multiple: int, all_of: int) -> int:
    return min(-(-width // multiple) * multiple, all_of)


@of_the_whole
def overall(
    scores: Sequence[Tensor], units: Sequence[Units], ratio: float, *, least: int = 1, multiple: int = 1
) -> list[Tensor]:
    """In all layers together, prune the floor(total · ratio) units with the smallest scores, as far as floors allow.

    A layer keeps its `least` best ones whatever they score; others go in their place. Of equal scores the first is
    pruned first. Widths are rounded up to a multiple of `multiple` (or all) afterwards.
    """
    if not 0 <= ratio <= 1:
        raise BadInput(f"pruning ratio is {ratio}; expected a share between 0 and 1")
    asked = math.floor(sum(u.count for u in units) * ratio + 1e-9)
    for score, unit in zip(scores, units, strict=True):
        _check(score, unit)
    # each layer's best are not among those that can go
    free = torch.cat([~best(score, min(least, len(score))) for score in scores]).nonzero().flatten()
    joined = torch.cat([score.detach().cpu().double() for score in scores])
    gone = free[joined[free].argsort(stable=True)[:asked]]
    layer = torch.arange(len(units)).repeat_interleave(torch.tensor([u.count for u in units]))
    widths = [u.count - n for u, n in zip(units, layer[gone].bincount(minlength=len(units)).tolist())]
    return [best(s, _rounded(width, multiple, u.count)) for s, width, u in zip(scores, widths, units)]


@of_the_whole
def greedy_macs(
    scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float, *, least: int = 1, multiple: int = 1
) -> list[Tensor]:
    """In all layers together, prune the smallest scores until the MACs have fallen by `ratio`.

    A layer keeps at least `least` channels, and a multiple of `multiple` (or as many as it has now). Source of the
    walk: Ding et al., ICCV 2021, arXiv 2007.03260, section 3.3. Raises ValueError when the floors are met first.
    """
    widths = Floors(units, least, multiple)
    goal = widths.goal(ratio)
    for layer, _ in ascending(scores, units):
        if widths.macs <= goal:
            break
        widths.drop(layer)
    widths.check(goal)
    return [best(score, width) for score, width in zip(scores, widths.rounded())]


@of_the_whole
def uniform_macs(
    scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float, *, least: int = 1, multiple: int = 1
) -> list[Tensor]:
    """Prune the same share of every layer, the smallest such that the MACs fall by `ratio`. Floors as above."""
    widths = Floors(units, least, multiple)
    goal = widths.goal(ratio)
    # the share at which a layer's width falls next; floor(count · share) channels go
    for _, layer in sorted((k / u.count, i) for i, u in enumerate(units) for k in range(1, u.count)):
        if widths.macs <= goal:
            break
        widths.drop(layer)
    widths.check(goal)
    return [best(score, width) for score, width in zip(scores, widths.rounded())]


class Floors:
    """Widths that may fall, and the MACs that are left."""

    def __init__(self, units: Sequence[ChannelUnits], least: int = 1, multiple: int = 1):
        self.units, self.least, self.multiple = units, least, multiple
        self.widths = [u.count for u in units]
        self.cost = units[0].widths
        self.every = dict(self.cost.now)
        self.macs = self.cost.dense

    def goal(self, ratio: float) -> float:
        if not 0 <= ratio < 1:
            raise BadInput(f"share of MACs to remove is {ratio}; expected at least 0 and less than 1")
        return (1 - ratio) * self.cost.dense

    def _round(self, layer: int) -> int:
        return _rounded(self.widths[layer], self.multiple, self.units[layer].count)

    def drop(self, layer: int) -> bool:
        """One channel less in that layer, unless its floor is reached."""
        if self.widths[layer] <= self.least:
            return False
        self.widths[layer] -= 1
        name, width = self.units[layer].path, self._round(layer)
        if width != self.every[name]:
            self.macs -= self.cost.saved(self.every, name, width)
            self.every[name] = width
        return True

    def rounded(self) -> list[int]:
        return [self._round(layer) for layer in range(len(self.units))]

    def check(self, goal: float) -> None:
        if self.macs > goal:
            raise BadInput(
                f"{goal / self.cost.dense:.3f} of the MACs cannot be reached: with at least {self.least} channels in "
                f"each of the {len(self.units)} prunable layers {self.macs / self.cost.dense:.3f} are left"
            )


def ascending(scores: Sequence[Tensor], units: Sequence[Units]) -> list[tuple[int, int]]:
    """(layer, unit) of all, the smallest score first; of equal ones, the first."""
    for score, unit in zip(scores, units, strict=True):
        _check(score, unit)
    joined = torch.cat([score.detach().cpu().double() for score in scores])
    places = [(layer, i) for layer, score in enumerate(scores) for i in range(len(score))]
    return [places[i] for i in joined.argsort(stable=True).tolist()]


def best(score: Tensor, width: int) -> Tensor:
    keep = torch.ones(len(score), dtype=torch.bool)
    keep[score.detach().cpu().argsort(stable=True)[: len(score) - width]] = False
    return keep


def _check(score: Tensor, unit: Units) -> None:
    if score.isnan().any():
        raise BadInput(f"{unit.path}: {int(score.isnan().sum())} of {unit.count} scores are NaN; are its weights?")
