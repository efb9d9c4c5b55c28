"""The state in which a network is looked at, and what its layers are seen to take in."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
