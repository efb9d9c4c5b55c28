"""What a network costs: multiply-accumulates (MACs) and parameters, from shapes and masks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network.blocks import CONVOLUTIONS, TRANSPOSED, blocks
from kerf.compress.network.watching import answer, evaluated, hooked, images_in
from kerf.errors import BadInput


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer. MACs are per image, without bias."""

    macs_dense: int
    macs: int
    params_dense: int  # of the weight alone
    params: int


@dataclass(frozen=True)
class Cost:
    """MACs per image of convolutions and linear layers; params counts every parameter of the network."""

    macs_dense: int
    macs: int
    params_dense: int
    params: int
    layers: dict[str, LayerCost]  # by weight path


@torch.no_grad()
def positions(model: nn.Module, example: Any) -> dict[str, int]:
    """How often each convolution or linear weight is applied per image, summed over calls. By weight path.

    That is H'·W', of a transposed convolution H·W. Runs the model once on ``example``, an input, a tuple or a dict of
    such, in evaluation mode, and leaves it as it was.
    """
    used: Counter[str] = Counter()

    def record(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            side = given[0] if isinstance(module, TRANSPOSED) else output  # of which weights have a row per channel
            used[path] += side.numel() // (batch * module.get_parameter("weight").shape[0])

        return hook

    batch = images_in(example)
    hooks = [
        module.register_forward_hook(record(f"{name}.weight" if name else "weight"))
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)) and module._parameters.get("weight") is not None
    ]
    with evaluated(model), hooked(hooks):
        answer(model, example)
    return dict(used)


def count(model: nn.Module, example: Any, masks: Mapping[str, Tensor] | None = None) -> Cost:
    """Cost dense and with masks (bool, True = keep): a masked weight costs no parameter and no MAC."""
    masks = masks or {}
    layers = {}
    for path, times in positions(model, example).items():
        dense = model.get_parameter(path).numel()
        kept = int(masks[path].sum()) if path in masks else dense
        layers[path] = LayerCost(dense * times, kept * times, dense, kept)
    total = sum(p.numel() for p in model.parameters())
    pruned = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    return Cost(
        sum(layer.macs_dense for layer in layers.values()),
        sum(layer.macs for layer in layers.values()),
        total,
        total - pruned,
        layers,
    )


def element_density(model: nn.Module, paths: Iterable[str]) -> float:
    """Share of non-zero weights in these parameters taken together."""
    weights = [model.get_parameter(path) for path in paths]
    return sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


@torch.no_grad()
def block_density(model: nn.Module, paths: Iterable[str], n: int) -> float:
    """Share of 1×n blocks with a non-zero, in these parameters taken together: what a block kernel has to compute.

    A block is n consecutive output kernels at one input channel; if n does not divide O the last ones are shorter.
    """
    if n < 1:
        raise BadInput(f"N is {n}; expected at least 1 output kernel per block")
    occupied = total = 0
    for path in paths:
        kept = blocks(model.get_parameter(path), n).any(-1)
        occupied, total = occupied + int(kept.sum()), total + kept.numel()
    return occupied / total
