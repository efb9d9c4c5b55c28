"""The two passes over a network's layers: what each block costs, and what the weights become when some are gone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kerf.compress.second_order.curve import evenly, prices
from kerf.compress.second_order.elimination import eliminate
from kerf.compress.second_order.layer import Layer
from kerf.compress.second_order.refit import Fit
from kerf.compress.second_order.walk import Program, walk
from kerf.errors import BadInput

ENOUGH = 4  # samples for each input of a layer, below which its statistics are told to be thin

Height = Mapping[str, tuple[int, int]]  # layer -> (N, taps) of its blocks
Support = Callable[[Layer, Fit], Tensor | None]


def costs(
    program: Program,
    batches: Sequence[Any],
    blocks: Height,
    damping: float,
    importance: Callable[[Layer, Fit], Tensor],
) -> dict[str, Tensor]:
    """Layer -> (R, I) the price of each block, see `curve.prices`; the network stays as it is.

    ``importance``: (O,) how much an error of each output matters: what E‖y − ŷ‖² is weighted with.
    """
    found: dict[str, Tensor] = {}

    def visit(layer: Layer, fit: Fit) -> None:
        check(layer, fit)
        if layer.name in blocks:
            height, taps = blocks[layer.name]
            gram, _ = fit.damped(damping)
            matters = importance(layer, fit).to(gram).clamp(min=0).sqrt()
            weight = layer.weight.to(gram) * matters[:, None]
            found[layer.name] = _prices(weight, gram, height, taps)

    walk(program, batches, visit)
    return found


@dataclass(frozen=True)
class Compensation:
    lost: dict[str, float]  # layer -> Σ_o Var[t_o − ŷ_o] / Σ_o Var[t_o]: 0 is as before, 1 as good as a constant
    note: str  # where there were few images, a line that says so


def compensate(program: Program, batches: Sequence[Any], images: int, keep: Support, damping: float) -> Compensation:
    """Fits every layer, in order, to what those before it have become.

    ``keep`` says of a layer, and of what it reads now, which weights stay, bool (O, d), or None: all of them.
    ``images``: how many there are in the batches, for the note. Raises BadInput as `check` does.
    """
    lost: dict[str, float] = {}
    begun: list[str] = []  # layers that were fitted
    wanted: dict[str, int] = {}  # layers whose statistics are thin -> how many images they want

    def visit(layer: Layer, fit: Fit) -> None:
        check(layer, fit)
        support = keep(layer, fit)
        if not begun and (support is None or bool(support.all())):
            return  # nothing has gone yet: the layer answers what it did
        begun.append(layer.name)
        weight = fit.solve(layer.weight, fit.chosen(layer.weight, damping, support), support)
        if layer.window is not None:
            weight = fit.restored(weight)
        program.write(layer, weight.float(), fit.constant(weight).float())
        if support is not None:
            lost[layer.name] = float(fit.error(weight).sum() / fit.variance.sum().clamp(min=1e-30))
            if fit.samples < ENOUGH * fit.gram.shape[1]:
                wanted[layer.name] = math.ceil(ENOUGH * fit.gram.shape[1] * images / fit.samples)

    walk(program, batches, visit)
    return Compensation(lost, _scarce(wanted, images))


def cheapest(layer: Layer, fit: Fit, n: int, share: float, damping: float, multiple: int = 0) -> Tensor:
    """bool (O, d): all but the floor(blocks · share) 1×n blocks that cost least, given what the layer reads now.

    ``multiple``: if not 0, all block rows keep equally many, as `evenly` has it. Otherwise a block's cost is shared out
    over its rows, so that a short last block row is not cheaper for being short.
    """
    weight = fit.solve(layer.weight, damping)
    gram, _ = fit.damped(damping)
    price = _prices(weight, gram, n, layer.taps)
    price[-1] *= n / (len(weight) - n * (len(price) - 1))
    if multiple:
        keep = evenly(price, share, multiple)
    else:
        keep = torch.ones_like(price, dtype=torch.bool)
        keep.view(-1)[price.flatten().argsort()[: int(price.numel() * share + 1e-9)]] = False
    return keep.repeat_interleave(n, 0)[: len(weight)].repeat_interleave(layer.taps, 1)


def _prices(weight: Tensor, gram: Tensor, n: int, taps: int) -> Tensor:
    """(R, I / groups), `prices` of all block rows: weight (O, d), gram (groups, d, d), n a divisor of a group."""
    parts = zip(weight.chunk(len(gram)), gram)
    return torch.cat([prices(eliminate(own, seen, n, taps)) for own, seen in parts])


def check(layer: Layer, fit: Fit) -> None:
    """Raises BadInput where the calibration images make what a layer reads or answers infinite, or no number."""
    if not all(bool(t.isfinite().all()) for t in (fit.gram, fit.cross, fit.variance)):
        raise BadInput(f"{layer.name}: NaN or infinity there on the calibration images; expected finite ones")


def _scarce(wanted: Mapping[str, int], images: int) -> str:
    if not wanted:
        return ""
    worst = max(wanted, key=lambda name: wanted[name])
    return (
        f"{images} calibration images are few for {len(wanted)} layers ({worst} wants {wanted[worst]}): "
        "their statistics are damped more"
    )
