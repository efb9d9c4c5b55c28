"""HRank: channels whose feature maps have low rank go.

Paper: Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020, arXiv 2002.10179
Code:  github.com/lmbxmu/HRank
Differs: all layers are pruned at once and then fine-tuned, as the authors' later HRankPlus does; --set turns=K goes
    through them from first to last in K turns, with equal parts of the epochs, the paper's way where K is their number
    (its epochs have rates of their own). The same share of every layer, where the authors list rates by hand. A map is
    what the next convolution reads. Of equal ranks the first channel goes first; the authors' order is not determined.
"""

from functools import partial

import torch
from torch import Tensor

from kerf.compress.measures.feature_maps import Activations
from kerf.compress.pruning import schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.errors import BadInput


def rank(maps: Tensor) -> Tensor:
    """(B, width, H, W) -> (B, width): the rank of every map."""
    return torch.linalg.matrix_rank(maps).float()


def hrank(settings: Settings, *, images: int = 640, turns: int = 1) -> Recipe:
    """Removes, in every layer, the channels whose maps have the smallest mean rank; then fine-tunes.

    images: training images over which ranks are averaged; turns: in how many the layers are gone through, each
    fine-tuned before the next; as many as there are layers prunes one at a time.
    """
    if turns < 1:
        raise BadInput(f"turns is {turns}: expected at least 1")
    ranks = Activations(rank, images)
    return Recipe(
        settings.channels(scaled=True),
        ranks.score,
        settings.uniform,
        schedules.one_shot if turns == 1 else partial(schedules.layer_by_layer, turns=turns),
        observe=ranks.observe,
    )
