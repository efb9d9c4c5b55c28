"""What data a criterion or a removal is shown, and the state in which it sees the network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kerf.compress.network.watching import evaluated

Sample = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # batches of training images (B, C, H, W) and their labels (B,)


@dataclass(frozen=True)
class Shown:
    """A sample of training images, and one of validation images for methods that try out what they choose."""

    training: Sample
    validation: Sample

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.training()


def held_out(sample: Sample) -> Sample:
    """The validation images that come with a sample; one that has none is all the data there is."""
    return sample.validation if isinstance(sample, Shown) else sample


def first(sample: Sample, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `images` of a sample, or all that it has, in its batches."""
    for x, y in sample():
        if images <= 0:
            return
        yield x[:images], y[:images]
        images -= len(x)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of these images that are classified right."""
    with evaluated(model):
        hits = sum((model(x).argmax(1) == y).sum() for x, y in batches)
    return int(hits) / sum(len(y) for _, y in batches)
