"""Filter pruning by L1, one shot: the coarsest pattern in the comparison.

Paper: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710
Code:  github.com/lmbxmu/1xN, StructureConv
Differs: filters are zeroed and stay in the network, as the 1xN authors do in their comparison; the paper cuts them out,
    with the next layer's input channels, and skips layers it finds sensitive.
"""

from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Filter


def filters(settings: Settings) -> Recipe:
    """Removes, in every layer, the share p of its filters W[o] with the smallest sum |w|."""
    return Recipe(Filter(full=settings.full), criteria.l1)
