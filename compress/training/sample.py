"""What data a criterion or a removal is shown, and the state in which it sees the network."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of these images that are classified right."""
    with evaluated(model):
        hits = sum((model(x).argmax(1) == y).sum() for x, y in batches)
    return int(hits) / sum(len(y) for _, y in batches)


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks when the block ends."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs(
    model: nn.Module, paths: Iterable[str], batches: Iterable[Tensor], see: Callable[[str, nn.Module, Tensor], None]
) -> None:
    """Shows `see` these modules and their inputs, batch by batch of images (B, C, H, W)."""

    def hook(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(path, module, args[0])

    with hooked(model.get_submodule(path).register_forward_pre_hook(partial(hook, path)) for path in paths):
        for x in batches:
            model(x)
