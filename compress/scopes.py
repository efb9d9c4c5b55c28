"""Selection: scores and a ratio -> which units stay. Tensors only; knows no network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.units import Units


def local(scores: Sequence[Tensor], units: Sequence[Units], ratio: float) -> list[Tensor]:
    """In every layer by itself, prune the floor(count · ratio) units with the smallest scores.

    Returns one bool (count,) per layer, True = keep. Of equal scores the first is pruned first, on every device.
    Raises ValueError if ratio is outside [0, 1] or a score is not a number.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"pruning ratio is {ratio}; expected a share between 0 and 1")
    return [_keep_largest(score, unit, ratio) for score, unit in zip(scores, units, strict=True)]


def _keep_largest(score: Tensor, unit: Units, ratio: float) -> Tensor:
    if score.isnan().any():
        raise ValueError(f"{unit.path}: {int(score.isnan().sum())} of {unit.count} scores are NaN; are its weights?")
    pruned = math.floor(unit.count * ratio + 1e-9)  # 100 × 0.29 is 28.999…, meant as 29
    keep = torch.ones(unit.count, dtype=torch.bool)
    keep[score.cpu().argsort(stable=True)[:pruned]] = False
    return keep.to(score.device)
