"""Uniform channel selection by |γ|, without a penalty: the RNI authors' own baseline.

Paper: Suteu and Guo, "Receding Neuron Importances for Structured Pruning", 2022, arXiv 2204.06404, section 4
Code:  method "ucs" of the authors' notebook (see rni.py)
Differs: starts from trained weights as they are; the authors start γ at 0.5, train from scratch and keep 3 channels.
"""

from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings


def ucs(settings: Settings) -> Recipe:
    """Removes, in every layer, the channels with the smallest |γ|; then fine-tunes."""
    scope = settings.uniform
    return Recipe(
        settings.channels(scaled=True),
        criteria.bn_scale,
        scope,
    )
