"""DARB-style block-max masking: of every block of a row only the largest weight stays; sparse rows have longer blocks.

Paper: Ren et al., "DARB: A Density-Adaptive Regular-Block Pruning for Deep Neural Networks", AAAI 2020,
    arXiv 1911.08020
Code:  none
Differs: filled in, only the abstract having been read: how long a row's blocks are. A block of row i has
    B_i = 2^round(log2(1 / d_i) + o) weights, between 1 and --set longest, where d_i is the row's density after
    magnitude pruning of its layer by the same share and o the smallest offset that meets it; rows with equal offsets
    go by index. Rows are weights (O, I · kh · kw); a shorter block at the end keeps one too. So a layer loses the share
    asked for, and less than a row more. One shot, then fine-tuning with the masks as they are. No kernel here uses the
    regularity of its blocks: it makes a network smaller, not faster.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kerf.compress.pruning import criteria, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Weight, WeightUnits
from kerf.errors import BadInput


def block_max(score: Tensor, length: int) -> Tensor:
    """(rows, n) -> bool (rows, n), True at the largest of every `length` neighbours of a row; of equals the first."""
    rows, n = score.shape
    blocks = torch.nn.functional.pad(score, (0, -n % length), value=-torch.inf).view(rows, -1, length)
    keep = torch.zeros_like(blocks, dtype=torch.bool)
    # argmax may take any of equal ones, a stable sort takes the first
    keep.scatter_(2, blocks.sort(dim=2, descending=True, stable=True).indices[:, :, :1], True)
    return keep.view(rows, -1)[:, :n]


def lengths(density: Tensor, n: int, budget: int, longest: int) -> Tensor:
    """(rows,) blocks' lengths, powers of two, so that Σ ⌈n / B_i⌉ ≤ `budget` weights stay.

    `density` (rows,) is what magnitude pruning leaves of each row. Raises ValueError when the longest blocks keep more.
    """
    size = torch.ones(len(density), dtype=torch.long)
    steps = range(int(math.log2(longest)))
    # from the offset o = k + 1/2 − log2(1 / d) on a row's blocks are 2^(k + 1) long; empty rows come first
    flips = sorted(
        (k + 0.5 + (math.log2(d) if d else -math.inf), k, i) for i, d in enumerate(density.tolist()) for k in steps
    )
    kept = len(density) * n
    for _, k, i in flips:
        if kept <= budget:
            break
        kept += -(-n // 2 ** (k + 1)) - -(-n // 2**k)
        size[i] = 2 ** (k + 1)
    if kept > budget:
        raise BadInput(f"{budget} weights in {len(density)} rows of {n}: blocks of {longest} leave {kept}")
    return size


def density_adaptive(
    scores: Sequence[Tensor], units: Sequence[WeightUnits], ratio: float, *, longest: int
) -> list[Tensor]:
    """A scope: in every layer by itself, one weight per block stays."""
    keep = []
    for score, unit, dense in zip(scores, units, scopes.local(scores, units, ratio)):
        rows = score.view(unit.shape[0], -1)
        budget = math.floor((1 - ratio) * unit.count + 1e-9)
        size = lengths(dense.view(rows.shape).double().mean(1).cpu(), rows.shape[1], budget, longest)
        kept = torch.ones_like(rows, dtype=torch.bool)
        for length in size.unique().tolist():  # rows of one class at a time
            those = (size == length).to(rows.device)
            kept[those] = block_max(rows[those], length)
        keep.append(kept.flatten())
    return keep


def darb(settings: Settings, *, longest: int = 64) -> Recipe:
    """DARB-style: keeps one weight, the largest, of every block of a row; dense rows have shorter blocks.

    longest: weights in a block at most, a power of two.
    """
    if longest < 1 or longest & (longest - 1):
        raise BadInput(f"longest is {longest}: expected a power of two")
    return Recipe(Weight(full=settings.full), criteria.l1, partial(density_adaptive, longest=longest))
