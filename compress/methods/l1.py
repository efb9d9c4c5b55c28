"""Filter pruning by L1, with the channels cut out: the baseline of channel pruning.

Paper: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710
Code:  github.com/Eric-mingjie/rethinking-network-pruning, l1-norm-pruning
Differs: the same share of every layer, where the paper skips layers and stages it finds sensitive by hand; a share of
    floor(width · p) goes, not width − int(width · (1 − p)).
"""

from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings


def l1(settings: Settings) -> Recipe:
    """Removes, in every layer, the channels whose filters have the smallest mean |w|; then fine-tunes."""
    scope = settings.uniform
    return Recipe(settings.channels(), criteria.l1, scope)
