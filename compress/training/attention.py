"""Attention transfer: a network learns where another one looks, from maps that need not have the same channels.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, equation 2, with
sums of squares over channels as maps. Orders of channels do not matter, nor how many are left: rearranged and cut
networks learn by it as well. Differs: the distance is squared, as in the authors' program, and a mean over maps, not a
sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.network.watching import hooked


@torch.no_grad()
def stages(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Of each size that images have on their way, (h, w) larger than one pixel, the last module which gives such."""
    last: dict[tuple[int, int], str] = {}

    def look(name: str, y: Any) -> None:
        if isinstance(y, Tensor) and y.ndim == 4 and y.shape[2] * y.shape[3] > 1:
            last[y.shape[2], y.shape[3]] = name

    with hooked(
        module.register_forward_hook(lambda _, __, y, name=name: look(name, y))
        for name, module in model.named_modules()
        if name
    ):
        model(x)
    return tuple(dict.fromkeys(last.values()))


def looked(model: nn.Module, names: Sequence[str], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(logits, for each of these modules (B, h · w) the map Σ_c y², of length 1)."""
    found: dict[str, Tensor] = {}

    def keep(name: str, y: Tensor) -> None:
        found[name] = F.normalize(y.float().square().sum(1).flatten(1))

    with hooked(
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: keep(name, y)) for name in names
    ):
        logits = model(x)
    return logits, [found[name] for name in names]


def apart(own: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Mean over maps, and over images, of ‖q − q'‖², from 0 to 2 since no map has a number below 0."""
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(own, others, strict=True)]).mean()
