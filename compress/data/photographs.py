"""Large images, decoded when they are needed: crops, resizing, files that cannot be read; and decoding by PIL.

Training: a random area of [0.08, 1] and aspect of [3/4, 4/3] cut, resized, mirrored. Evaluation: the shorter side to
size * 256 / 224, then the centre. Each image draws from (seed, epoch, index), so the number of workers and of processes
changes nothing, and neither does a run that was stopped and resumed.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kerf.compress.data.batches import WHOLE, Part, batches_of, generator, normalise
from kerf.compress.data.folders import Listing
from kerf.compress.data.images import opened, rgb
from kerf.errors import BadInput

BAD_IMAGES = ("fatal", "skip")
TRIES = 20  # images drawn for one place in a training batch before the files are given up


@dataclass(frozen=True, eq=False)
class Files:
    """What the loaders have in common: which images make up a batch, and what a file that is no image does.

    It raises ValueError. With bad_images "skip" it is named on stderr once, and left out of evaluation, whose batch is
    that much smaller. In training its place goes to another image, drawn from (seed, epoch, index) as well: batches
    keep their size, so that several processes stay in step.
    """

    listing: Listing
    image_size: int
    size: int
    workers: int
    training: bool = False
    bad_images: str = "fatal"
    unreadable: set[int] = field(default_factory=set)  # indices that an epoch has come across

    @property
    def names(self) -> tuple[str, ...]:
        return self.listing.names

    @property
    def skipped(self) -> frozenset[str]:
        return frozenset(self.names[index] for index in self.unreadable)

    def __len__(self) -> int:
        return batches_of(len(self.names), self.size, self.training)

    def batches(self, epoch: int, seed: int, part: Part) -> list[list[int]]:
        """Indices of the images of every batch."""
        count = len(self.names)
        if self.training:
            order = torch.randperm(count, generator=generator(seed, epoch))
            batches = [b[part.of(len(b))] for b in order.split(self.size)[: len(self)]]
        else:
            batches = torch.arange(count)[part.of(count)].split(self.size)
        return [b.tolist() for b in batches if len(b)]

    def candidates(self, index: int, epoch: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
        """For one place in a batch: its image, then those that may stand in for it; each with its random numbers."""
        yield index, np.random.default_rng((seed, epoch, index))
        for attempt in range(1, TRIES if self.training else 1):
            random = np.random.default_rng((seed, epoch, index, attempt))
            yield int(random.integers(len(self.names))), random

    def labels(self, indices: list[int]) -> Tensor:
        return torch.tensor([self.listing.labels[index] for index in indices])

    def leave_out(self, index: int, why: str) -> None:
        """Raises ValueError with `why`, which names the file, unless such files are to be skipped."""
        if self.bad_images == "fatal":
            raise BadInput(f"{why}; remove the file, or leave it out with --bad_images skip")
        if index not in self.unreadable:
            self.unreadable.add(index)
            print(f"warning: {why}; skipped", file=sys.stderr)

    def check(self, wanted: int, read: int) -> None:
        """Raises ValueError when images of a training batch are missing in spite of those that could stand in."""
        if self.training and read < wanted:
            raise BadInput(
                f"{TRIES} images drawn from {self.listing.root}, one after the other, cannot be read; "
                f"{len(self.unreadable)} of {len(self.names)} were found to be unreadable so far"
            )


class Folder(Files):
    """Decoded by PIL in worker processes."""

    def epoch(self, epoch: int = 0, seed: int = 0, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.batches(epoch, seed, part)
        loader = torch.utils.data.DataLoader(
            _Decoded(self, epoch, seed), batch_size=None, sampler=batches, num_workers=self.workers
        )
        for (pixels, read, failed), batch in zip(loader, batches):
            for index, why in failed:
                self.leave_out(index, why)
            self.check(len(batch), len(read))
            if read:
                yield normalise(pixels.permute(0, 3, 1, 2)), self.labels(read)


@dataclass(frozen=True, eq=False)
class _Decoded(torch.utils.data.Dataset):
    folder: Folder
    epoch: int
    seed: int

    def __getitem__(self, batch: list[int]) -> tuple[Tensor, list[int], list[tuple[int, str]]]:
        """Pixels (b, s, s, 3) uint8 of the images that were read, and their indices; indices and errors of the others.

        An exception would reach the user as the traceback of a worker.
        """
        folder = self.folder
        side = folder.image_size
        pixels = torch.empty(len(batch), side, side, 3, dtype=torch.uint8)
        read: list[int] = []
        failed: dict[int, str] = {}
        for place in batch:
            for index, random in folder.candidates(place, self.epoch, self.seed):
                if index in folder.unreadable or index in failed:
                    continue
                try:
                    with opened(folder.listing.root / folder.names[index]) as image:
                        cut = random_crop(image, side, random) if folder.training else centre_crop(image, side)
                except ValueError as error:
                    failed[index] = str(error)
                    if folder.bad_images == "fatal":
                        return pixels[: len(read)], read, list(failed.items())
                    continue
                pixels[len(read)] = cut
                read.append(index)
                break
        return pixels[: len(read)], read, list(failed.items())


def crop_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int, bool]:
    """Left, top, width and height of a crop of random area and aspect, and whether to mirror it.

    Source: "Going deeper with convolutions", section 6.
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = random.integers(width - w + 1), random.integers(height - h + 1)
    return int(left), int(top), w, h, bool(random.random() < 0.5)


def evaluation_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height to which evaluation resizes an image before it cuts the centre."""
    short = round(size * 256 / 224)
    scale = short / min(width, height)
    return max(short, int(width * scale)), max(short, int(height * scale))


def resized(pixels: Tensor, width: int, height: int) -> Tensor:
    """(h, w, 3) uint8 -> (height, width, 3). What PIL's BILINEAR makes of it, in half the time."""
    if pixels.shape[:2] == (height, width):
        return pixels
    planes = pixels.permute(2, 0, 1)[None]
    planes = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return planes[0].permute(1, 2, 0)


def centred(pixels: Tensor, size: int) -> Tensor:
    """The evaluation's (size, size, 3) of a whole image (h, w, 3) uint8."""
    width, height = evaluation_size(pixels.shape[1], pixels.shape[0], size)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized(pixels, width, height)[top : top + size, left : left + size]


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """(size, size, 3) uint8 of an image not decoded yet."""
    return centred(torch.from_numpy(np.array(rgb(image))), size)


def random_crop(image: Image.Image, size: int, random: np.random.Generator) -> Tensor:
    """The random crop of an image not decoded yet, (size, size, 3) uint8.

    Large JPEG files come at 1/2, 1/4 or 1/8 of their size for less work; then the crop is decoded at 2 * size or more,
    which leaves the resizing its say.
    """
    full = image.width
    left, top, w, h, mirror = crop_box(*image.size, random)
    image.draft(None, (full * 2 * size // w + 1, image.height * 2 * size // h + 1))
    scale = round(full / image.width)
    if scale > 1:  # the box no longer has whole pixels, which PIL can resize
        box = (left / scale, top / scale, (left + w) / scale, (top + h) / scale)
        pixels = torch.from_numpy(np.array(rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box)))
    else:
        cut = rgb(image).crop((left, top, left + w, top + h))
        pixels = resized(torch.from_numpy(np.array(cut)), size, size)
    return pixels.flip(1) if mirror else pixels
