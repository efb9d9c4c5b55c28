"""What happens to units that go: their weights become zero, or their channels leave the network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network import folding, surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.units.channels import ChannelUnits
from kerf.compress.units.weights import WeightUnits

Masks = dict[str, Tensor]  # parameter path -> bool of its shape, True = keep


@dataclass(frozen=True)
class Removal:
    graph: DependencyGraph  # of the network after it
    masks: Masks = field(default_factory=dict)  # zeros that training has to leave alone
    kept: dict[str, Tensor] = field(default_factory=dict)  # set -> bool, of the channels it had before
    note: str = ""  # for the log


Images = Callable[[], Tensor]  # (B, C, H, W) of the data, read when a removal has to see activations
Remove = Callable[[nn.Module, DependencyGraph, Sequence[Any], Sequence[Tensor], Images], Removal]
# model, graph, units, bool (count,) for each, images


def zero(
    model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], keep: Sequence[Tensor], _: Images
) -> Removal:
    parameters = dict(model.named_parameters())
    masks = {}
    for unit, kept in zip(units, keep):
        # in the parameter's memory format: the multiplication after every step is then one pass over both
        mask = torch.empty_like(parameters[unit.path], dtype=torch.bool)
        masks[unit.path] = mask.copy_(unit.mask(kept))
    surgery.zero(model, masks)
    return Removal(graph, masks)


def plain(
    model: nn.Module, graph: DependencyGraph, units: Sequence[Any], keep: Sequence[Tensor], images: Images
) -> Removal:
    """What the units ask for: channels leave the network, parts of weights become zero."""
    way = cut if isinstance(next(iter(units), None), ChannelUnits) else zero
    return way(model, graph, units, keep, images)


def cut(
    model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], keep: Sequence[Tensor], _: Images
) -> Removal:
    kept = by_set(units, keep)
    return Removal(surgery.cut(model, graph, kept), kept=kept, note=describe(kept))


def cut_folded(
    model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], keep: Sequence[Tensor], images: Images
) -> Removal:
    """Cuts channels that a matrix made zero when it was folded (`folding.fold_matrix`) into the layers before them.

    Batch norms get the variances that they now see, and constants that the channels become behind depthwise filters go
    into the layers that read them; the note says where that is not exact.
    """
    seen = images()
    folding.renormalise(model, {graph.norms[p] for u in units for p in u.channels.makers if p in graph.norms}, seen)
    kept = by_set(units, keep)
    lost = folding.absorb_constants(model, graph, kept, seen)
    note = describe(kept)
    if lost:
        note += f"; not exact in {len(lost)} layers, where up to {max(lost.values()):.1e} cannot be folded"
    return Removal(surgery.cut(model, graph, kept), kept=kept, note=note)


def renew(seed: int) -> Remove:
    """Cuts, and draws every weight that is left anew: only the widths are inherited."""

    def remove(
        model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], keep: Sequence[Tensor], images: Images
    ) -> Removal:
        removed = cut(model, graph, units, keep, images)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        return removed

    return remove


def by_set(units: Sequence[ChannelUnits], keep: Sequence[Tensor]) -> dict[str, Tensor]:
    """Choices as surgery takes them: set -> bool (width,)."""
    return {unit.path: kept.cpu() for unit, kept in zip(units, keep, strict=True)}


def describe(kept: dict[str, Tensor]) -> str:
    before, after = sum(len(k) for k in kept.values()), sum(int(k.sum()) for k in kept.values())
    return f"{after} of {before} channels stay, in {len(kept)} layers"
