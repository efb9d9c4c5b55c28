"""What data a criterion or a removal is shown, and the state in which it sees the network."""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

Sample = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # batches of training images (B, C, H, W) and their labels (B,)


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
