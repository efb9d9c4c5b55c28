"""Images to network input: order, augmentation, batches. Knows no data set and no split.

Pixels reach the network as (RGB / 255 - mean) / std with ImageNet's mean and std, for every data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from compress.images import Listing, open_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    names: tuple[str, ...]  # one per image, in file order
    size: int  # images in a batch, of all processes in training

    def __len__(self) -> int: ...  # batches in an epoch

    # (b, 3, s, s) f32, (b,) i64
    def epoch(self, epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]: ...


def normalise(pixels: Tensor) -> Tensor:
    """(b, 3, h, w) uint8 -> f32."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    return (pixels.float() - mean) / std


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


@dataclass(frozen=True, eq=False)
class Folder:
    """Large images, decoded when needed by worker processes.

    Training: a random area of [0.08, 1] and aspect of [3/4, 4/3] cut, resized, mirrored. Evaluation: the shorter side
    to size * 256 / 224, then the centre. Each image draws from (seed, epoch, index): the number of workers changes
    nothing.
    """

    listing: Listing
    image_size: int
    size: int
    workers: int
    training: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return self.listing.names

    def __len__(self) -> int:
        return batches_of(len(self.names), self.size, self.training)

    def epoch(self, epoch: int = 0, seed: int = 0, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.names)
        if self.training:
            order = torch.randperm(count, generator=generator(seed, epoch))
            batches = [b[part.of(len(b))] for b in order.split(self.size)[: len(self)]]
        else:
            batches = torch.arange(count)[part.of(count)].split(self.size)
        loader = torch.utils.data.DataLoader(
            _Decoded(self, epoch, seed),
            batch_sampler=[b.tolist() for b in batches if len(b)],
            num_workers=self.workers,
        )
        for pixels, labels in loader:
            yield normalise(pixels), labels


@dataclass(frozen=True, eq=False)
class _Decoded(torch.utils.data.Dataset):
    folder: Folder
    epoch: int
    seed: int

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        folder = self.folder
        image = open_rgb(folder.listing.root / folder.names[index])
        if folder.training:
            image = random_crop(image, folder.image_size, np.random.default_rng((self.seed, self.epoch, index)))
        else:
            image = centre_crop(image, folder.image_size)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()), folder.listing.labels[index]


def random_crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """A crop of random area and aspect, resized and perhaps mirrored ("Going deeper with convolutions", section 6)."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = random.integers(width - w + 1), random.integers(height - h + 1)
    image = image.resize((size, size), Image.BILINEAR, box=(left, top, left + w, top + h))
    return image.transpose(Image.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    short = round(size * 256 / 224)
    width, height = image.size
    scale = short / min(width, height)
    image = image.resize((max(short, int(width * scale)), max(short, int(height * scale))), Image.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))
