"""Weight pruning by magnitude, one shot: the accuracy that a pattern is measured against.

Paper: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, arXiv 1506.02626
Code:  github.com/lmbxmu/1xN, UnstructureConv
Differs: the paper prunes and retrains in rounds; here once, as the 1xN authors do in their comparison.
"""

from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Weight


def weight(settings: Settings) -> Recipe:
    """Removes, in every layer, the share p of its weights with the smallest |w|."""
    return Recipe(Weight(full=settings.full), criteria.l1)
