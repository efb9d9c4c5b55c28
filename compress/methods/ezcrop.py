"""EZCrop: channels go whose feature maps hold little outside the lowest frequencies.

Paper: Lin et al., "EZCrop: Energy-Zoned Channels for Robust Output Pruning", WACV 2022, arXiv 2105.03679
Code:  github.com/rlin27/EZCrop
Differs: the same share of every layer, where the authors list rates by hand. A map is what the next convolution reads;
    the authors' script hooks other layers than it names in some networks. The window is centred on frequency zero on
    both axes, also where one length is even and the other odd.
"""

import math
from functools import partial

import torch
from torch import Tensor

from kerf.compress.measures.feature_maps import Activations
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.errors import BadInput


def spectral_tail(maps: Tensor, alpha: float = 0.25) -> Tensor:
    """(B, width, H, W) -> (B, width): the share of S = ln(1 + |FFT|) outside a window around frequency zero.

    The window reaches ceil(α · half) frequencies to each side, on the axis where that is less. Zero for a zero map.
    """
    size = maps.shape[2:]
    centre = [length // 2 for length in size]
    reach = min(math.ceil((length - c - 1) * alpha) for length, c in zip(size, centre))
    if 1 in centre:
        reach = 0
    spectrum = torch.fft.fftshift(torch.fft.fft2(maps), dim=(2, 3)).abs().log1p()
    rows, columns = (slice(max(0, c - reach), c + reach + 1) for c in centre)
    share = spectrum[:, :, rows, columns].sum((2, 3)) / spectrum.sum((2, 3))
    return (1 - share).nan_to_num(0.0)


def ezcrop(settings: Settings, *, alpha: float = 0.25, images: int = 640) -> Recipe:
    """Removes, in every layer, the channels whose maps are the smoothest; then fine-tunes.

    alpha: half the window's share of an axis; images: training images over which shares are averaged.
    """
    if not 0 <= alpha <= 1:
        raise BadInput(f"alpha is {alpha}: expected a share between 0 and 1")
    tails = Activations(partial(spectral_tail, alpha=alpha), images)
    return Recipe(
        settings.channels(scaled=True),
        tails.score,
        settings.uniform,
        observe=tails.observe,
    )
