"""A user's own network, example and batches, checked and brought to where and how the network computes."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kerf.compress.data.batches import WHOLE, Part
from kerf.compress.network.surgery import tensor_at
from kerf.compress.network.watching import evaluated, tensors
from kerf.errors import BadInput, Unsupported

HALF = (torch.float16, torch.bfloat16)


def example_of(model: nn.Module, example: Any) -> Any:
    """One of what is given, (1, …), on the network's device and, where it is of floats, of its type.

    ``example`` is a tensor, a tuple of tensors for several inputs, or a dict of them by name. Raises BadInput for what
    is no batch.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"the model is a {type(model).__name__}: expected a torch.nn.Module")
    found = tensors(example)
    if not found or any(not t.ndim or not len(t) for t in found):
        came = f"of shape {tuple(found[0].shape)}" if found else f"a {type(example).__name__} without tensors"
        raise BadInput(
            f"the example is {came}: expected an input of the network, a tensor (1, C, H, W), or a tuple or a dict of "
            "its inputs"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        raise BadInput(f"{type(model).__name__} has no parameters: there is nothing to prune")
    batch = len(found[0])

    def one(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        t = t[:1] if len(t) == batch else t  # a table of another length is no batch
        return t.detach().to(like) if t.is_floating_point() else t.detach().to(like.device)

    return tree_map(one, example)


@contextmanager
def in_single(model: nn.Module) -> Iterator[None]:
    """Within, what the network holds in 16 bits is f32, for the range of scores; the same objects hold it."""
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    types = {name: tensor.dtype for name, tensor in named if tensor.dtype in HALF}
    for name in types:
        tensor = tensor_at(model, name)
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for name, dtype in types.items():
            tensor = tensor_at(model, name)
            tensor.data = tensor.data.to(dtype)


class Given:
    """Batches (images, labels) from a loader, a list or a generator, as a Sample and as the Batches of a split.

    What a generator has yielded is kept as far as it was read: methods look more than once.
    """

    names: tuple[str, ...] = ()
    skipped: Collection[str] = ()
    size = 0

    def __init__(self, data: Iterable[Any], model: nn.Module, example: Any):
        if not isinstance(data, Iterable):
            raise BadInput(f"data is a {type(data).__name__}: expected batches (images, labels), as a DataLoader has")
        if not isinstance(example, Tensor):
            raise Unsupported(
                "batches (images, labels) are for networks with one input, and the example is a "
                f"{type(example).__name__}: take a method that looks at weights alone, without data"
            )
        self.data, self.model, self.shape = data, model, example.shape[1:]

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source: Iterable[Any] = self.data
        if isinstance(self.data, Iterator):
            self.data, source = itertools.tee(self.data)
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        batch = None
        for batch in source:
            x, y = self._pair(batch)
            yield x.to(like), y.to(like.device)
        if batch is None:
            raise BadInput("data holds no batches: expected some of (images, labels)")

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise BadInput(f"data holds a {type(batch).__name__}: expected batches (images, labels), two tensors each")
        x, y = batch
        if x.shape[1:] != self.shape or len(x) != len(y):
            raise BadInput(
                f"data holds images of shape {tuple(x.shape)} with {len(y)} labels: expected (B, "
                f"{', '.join(map(str, self.shape))}), as the example is, and a label for each"
            )
        return x, y

    def __len__(self) -> int:
        """Batches, where the data can say."""
        return len(self.data) if isinstance(self.data, Sized) else 0

    def epoch(self, epoch: int, seed: int, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        return self()

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of all its images that are classified right."""
        hits = images = 0
        with evaluated(model):
            for x, y in self():
                hits, images = hits + int((model(x).argmax(1) == y).sum()), images + len(y)
        return hits / images
