"""1xN block pruning by L1, one shot.

Paper: Lin et al., "1xN Pattern for Pruning Convolutional Neural Networks", TPAMI 2022, arXiv 2105.14713
Code:  github.com/lmbxmu/1xN
Differs: there filters are sorted, pruned and the mask is put back in the old order, so the zeros of a trained network
    are not blocks. Here the channels are permuted, in every layer they reach, before the blocks are formed, and
    stay so; layers joined by a residual sum or a gate share one order where the authors leave some of them
    unsorted. Output channels that N does not divide end in a short block, where theirs straddle two input channels.
    Biases are trained; theirs are frozen.
"""

from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import OneByN


def one_by_n(settings: Settings) -> Recipe:
    """Removes, in every layer, the share p of its blocks that is smallest.

    A block is N consecutive output kernels at one input channel, W[bN : (b+1)N, c, :, :], and scores sum |w| over it.
    """
    return Recipe(OneByN(settings.n, full=settings.full), criteria.l1, rearrange=settings.rearrange)
