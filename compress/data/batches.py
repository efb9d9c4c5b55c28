"""Images to network input: order, augmentation, batches. Knows no data set and no split.

Pixels reach the network as (RGB / 255 - mean) / std with ImageNet's mean and std, for every data set.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kerf.images import MEAN, STD


@dataclass(frozen=True)
class Part:
    """What one of `count` processes takes; by default all."""

    index: int = 0
    count: int = 1

    def of(self, items: int) -> slice:
        """A run of neighbours; the parts of all processes, one behind the other, are the whole."""
        return slice(items * self.index // self.count, items * (self.index + 1) // self.count)


WHOLE = Part()


class Batches(Protocol):
    """A split. `epoch` orders and augments training batches; evaluation batches ignore it.

    With a `part`, of every training batch that part, ordered and augmented as in the whole batch; or batches of that
    part of the evaluation images.
    """

    @property
    def names(self) -> tuple[str, ...]: ...  # one per image, in file order

    @property
    def skipped(self) -> Collection[str]: ...  # met here and not readable; evaluation leaves them out

    @property
    def size(self) -> int: ...  # images in a batch, of all processes in training

    def __len__(self) -> int: ...  # batches in an epoch

    # (b, 3, s, s) f32, (b,) i64
    def epoch(self, epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]: ...


def normalise(pixels: Tensor) -> Tensor:
    """(b, 3, h, w) uint8 -> f32, in the same memory format."""
    mean, std = (torch.tensor(v, device=pixels.device) * 255 for v in (MEAN, STD))
    if pixels.stride(1) == 1:  # channels last: whole rows at once, not three values at a time
        rows = pixels.permute(0, 2, 3, 1).flatten(2).float()
        mean, std = mean.repeat(pixels.shape[3]), std.repeat(pixels.shape[3])
        return rows.sub_(mean).div_(std).unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
    return pixels.float().sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def generator(seed: int, epoch: int) -> torch.Generator:
    """A stream for one epoch, so that epoch 7 is the same whether or not the run was interrupted before it."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))


def batches_of(count: int, size: int, training: bool) -> int:
    """Training drops a short last batch: batch norm on one image is not defined."""
    return max(1, count // size) if training else -(-count // size)


def images_of(batches: Batches) -> int:
    """How many images are in a training batch: all have equally many."""
    return min(batches.size, len(batches.names))


def crop_and_flip(
    pixels: Tensor, random: torch.Generator, padding: int, flip: bool, own: slice = slice(None)
) -> Tensor:
    """Zero-pads (b, c, s, s), cuts s x s at random and mirrors half of them. One gather for the whole batch.

    Of `own` images alone, with what is drawn for all.
    """
    count, channels, size, _ = pixels.shape
    padded = F.pad(pixels[own], (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=random)
    steps = torch.arange(size)
    mirrored = (torch.rand(count, 1, generator=random) < 0.5) & flip
    rows, columns = top + steps, left + torch.where(mirrored, size - 1 - steps, steps)
    rows, columns = rows[own], columns[own]
    image = torch.arange(len(padded)).view(-1, 1, 1, 1)
    return padded[image, torch.arange(channels).view(1, -1, 1, 1), rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True, eq=False)
class InMemory:
    """Small images, decoded once and kept as uint8."""

    skipped = ()
    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]
    size: int
    training: bool = False
    flip: bool = True

    def __len__(self) -> int:
        return batches_of(len(self.labels), self.size, self.training)

    def epoch(self, epoch: int = 0, seed: int = 0, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        if not self.training:
            for index in torch.arange(count)[part.of(count)].split(self.size):
                yield normalise(self.pixels[index]), self.labels[index]
            return
        random = generator(seed, epoch)
        for index in torch.randperm(count, generator=random).split(self.size)[: len(self)]:
            own = part.of(len(index))
            pixels = crop_and_flip(self.pixels[index], random, padding=4, flip=self.flip, own=own)
            yield normalise(pixels), self.labels[index[own]]
