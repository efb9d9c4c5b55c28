"""No pruning: the same training for a network that keeps all its weights.

Paper: none; the control for every other method, which gets the same epochs.
Code:  github.com/lmbxmu/1xN, DenseConv
Differs: nothing.
"""

from kerf.compress.pruning import criteria, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Weight


def dense(_: Settings) -> Recipe:
    """Trains from scratch, or fine-tunes the weights that are given."""
    return Recipe(Weight(), criteria.l1, schedule=schedules.unpruned)
