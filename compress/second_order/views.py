"""More to see of the calibration images: mirrored, and parts of them enlarged."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = 0.35  # of an image, at least, that a part of it has
ASPECT = 4 / 3  # of a part, at most, against the image's


def seen_again(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) -> the same shape: of each image a random part, resized, every second one mirrored."""
    height, width = images.shape[2:]
    made = []
    for image in images:
        area, aspect, down, along, mirrored = torch.rand(5, generator=generator).tolist()
        root, ratio = math.sqrt(1 - area * (1 - AREA)), ASPECT ** (aspect - 0.5)
        h, w = (max(1, min(side, round(side * root * r))) for side, r in ((height, ratio), (width, 1 / ratio)))
        top, left = int(down * (height - h + 1)), int(along * (width - w + 1))
        part = image[None, :, top : top + h, left : left + w]
        part = F.interpolate(part, (height, width), mode="bilinear", antialias=True)
        made.append(part.flip(3) if mirrored < 0.5 else part)
    return torch.cat(made)
