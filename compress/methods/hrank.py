"""HRank: channels whose feature maps have low rank go.

Paper: Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020, arXiv 2002.10179
Code:  github.com/lmbxmu/HRank
Differs: all layers are pruned at once and then fine-tuned, as the authors' later HRankPlus does; the paper fine-tunes
    after each layer. The same share of every layer, where the authors list rates by hand. A map is what the next
    convolution reads. Of equal ranks the first channel goes first; the authors' order is not determined.
"""

import torch
from torch import Tensor

from kerf.compress.measures.feature_maps import Activations
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings


def rank(maps: Tensor) -> Tensor:
    """(B, width, H, W) -> (B, width): the rank of every map."""
    return torch.linalg.matrix_rank(maps).float()


def hrank(settings: Settings, *, images: int = 640) -> Recipe:
    """Removes, in every layer, the channels whose maps have the smallest mean rank; then fine-tunes.

    images: training images over which ranks are averaged.
    """
    ranks = Activations(rank, images)
    return Recipe(
        settings.channels(scaled=True),
        ranks.score,
        settings.uniform,
        observe=ranks.observe,
    )
