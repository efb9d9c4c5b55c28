"""1xN block pruning at random: the control for choosing blocks by L1.

Paper: Lin et al., "1xN Pattern for Pruning Convolutional Neural Networks", TPAMI 2022, arXiv 2105.14713
Code:  github.com/lmbxmu/1xN, BlockRandomConv
Differs: blocks are drawn without replacement. The authors draw with it and so remove about 1 - exp(-p) in place of p.
"""

import torch

from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import OneByN


def random_block(settings: Settings) -> Recipe:
    """Removes, in every layer, the share p of its blocks, each with the same chance. The draw follows from the seed."""
    draw = criteria.random(torch.Generator().manual_seed(settings.seed))
    return Recipe(OneByN(settings.n, full=settings.full), draw, rearrange=settings.rearrange)
