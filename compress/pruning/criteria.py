"""Scores of units: (count,) numbers, larger = keep. A score never selects."""

from collections.abc import Callable

import torch
from torch import Tensor

from kerf.compress.units.channels import ChannelUnits
from kerf.compress.units.weights import Units


def l1(units: Units) -> Tensor:
    """Mean |w| over each unit: the order of Σ|w| wherever units are equally large.

    Source: Li et al., ICLR 2017, arXiv 1608.08710 (filters); Lin et al., TPAMI 2022, arXiv 2105.14713 (1×N blocks).
    Differs: divided by the size, so that a short last block is not pruned merely for being short.
    """
    return units.rows().abs().sum(1) / units.sizes


def l2(units: Units) -> Tensor:
    """Mean w² over each unit: the order of ‖w‖ wherever units are equally large."""
    return units.rows().square().sum(1) / units.sizes


def random(generator: torch.Generator) -> Callable[[Units], Tensor]:
    """A criterion that draws every score from U(0, 1): the control that any other has to beat."""

    def score(units: Units) -> Tensor:
        return torch.rand(units.count, generator=generator, device=generator.device).to(units.sizes.device)

    return score


def bn_scale(units: ChannelUnits) -> Tensor:
    """Mean |γ| of the batch norms that scale each channel. Source: Liu et al., ICCV 2017, arXiv 1708.06519.

    Raises ValueError where no batch norm does.
    """
    return units.scales().abs().mean(0)
