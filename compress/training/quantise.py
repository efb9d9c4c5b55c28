"""Fake quantisation: layers compute with weights and inputs that lie on the grids of integers, in f32.

Weights: symmetric, a scale for each output channel, b bits: w = s q, |q| ≤ 2^(b−1) − 1. Inputs: one scale and zero
point for all of a layer's, 8 bits: x = s (q − z), 0 ≤ q ≤ 255. Batch norms and biases stay f32. A batch norm behind a
layer scales whole output channels, so a folded weight lies on the same grid with another scale.

Source: Jacob et al., CVPR 2018, arXiv 1712.05877; rounding passes gradients straight through (Bengio et al., 2013,
arXiv 1308.3432). Scales of weights are rounded up to 16 bits: s q is then exact in f32, so that what has been quantised
is quantised to itself, bit by bit.
"""

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kerf.compress.network.watching import inputs
from kerf.compress.training.masking import Shadows
from kerf.errors import BadInput

LEAST, MOST = 2, 8  # bits of a weight; of one bit, zero is the only value between −q and q
LEVELS = 255  # of inputs
SCALE_BITS = 16


@dataclass(frozen=True)
class Grid:
    """How one layer computes: bits of its weight; scale and zero point of its input."""

    bits: int
    scale: float
    zero: int


Grids = Mapping[str, Grid]  # module path ->


class _Integers(torch.autograd.Function):
    """x rounded and clipped to [least, most]; gradients pass where it is not clipped."""

    @staticmethod
    def forward(ctx, x: Tensor, least: int, most: int) -> Tensor:
        integers = x.round()
        ctx.save_for_backward((integers >= least) & (integers <= most))
        return integers.clamp(least, most)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.saved_tensors[0], None, None


@torch.no_grad()
def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """(O, 1, …): the least s, of 16 bits, with |w| ≤ s (2^(b−1) − 1) in each output channel; 1 where all is zero."""
    most = weight.abs().flatten(1).amax(1).float() / (2 ** (bits - 1) - 1)
    mantissa, exponent = torch.frexp(most)
    rounded = torch.ldexp((mantissa * 2**SCALE_BITS).ceil() / 2**SCALE_BITS, exponent)
    scale = torch.where(most > 0, rounded, torch.ones_like(most))
    return scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """The nearest s q, gradients as if it were `weight`."""
    scale, most = weight_scale(weight, bits), 2 ** (bits - 1) - 1
    return _Integers.apply(weight / scale, -most, most) * scale


def input_on_grid(x: Tensor, grid: Grid) -> Tensor:
    """The nearest s (q − z), as f32; gradients are those of clipping."""
    scale = torch.full((), grid.scale, dtype=torch.float, device=x.device)  # on a GPU a number would be a reciprocal
    return _Integers.apply(x.float() / scale, -grid.zero, LEVELS - grid.zero) * scale


def layers(model: nn.Module) -> list[str]:
    """Paths of the modules that are quantised: convolutions and linear layers."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], settled: bool = False) -> dict[str, tuple[float, int]]:
    """Module path -> scale and zero point of its inputs, from their least and most on these images (B, C, H, W).

    Of the layers that are called, in the order of their first call. Batch norms act as in training unless they have
    ``settled``: in a network that was hardly trained inputs in training would be far off the grid.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not settled:
            module.train()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def see(path: str, _: nn.Module, x: Tensor) -> None:
        least, most = x.float().aminmax()
        before = seen.get(path, (torch.zeros_like(least), torch.zeros_like(most)))  # zero is always on the grid
        seen[path] = torch.minimum(before[0], least), torch.maximum(before[1], most)

    inputs(model, layers(model), batches, see)
    found = {}
    for path, (least, most) in seen.items():
        scale = (most - least) / LEVELS if most > least else torch.ones_like(most)
        found[path] = float(scale), round(float(-least / scale))
    return found


class Quantisers:
    """Hooks that quantise weights and inputs, in training and in evaluation. Parameters keep their values and names."""

    def __init__(self, grids: Grids):
        self.grids, self.handles = grids, list[RemovableHandle]()
        self.shadows = Shadows(lambda path, weight: on_grid(weight, grids[path.rpartition(".")[0]].bits))

    def attach(self, model: nn.Module) -> None:
        self.shadows.attach(model, [f"{path}.weight" for path in self.grids])
        for path, grid in self.grids.items():
            hook = functools.partial(_quantise_input, grid)
            self.handles.append(model.get_submodule(path).register_forward_pre_hook(hook))

    def detach(self) -> None:
        self.shadows.detach()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    @torch.no_grad()
    def settle(self, model: nn.Module) -> None:
        """Weights become what the layers compute with."""
        for path, grid in self.grids.items():
            weight = model.get_parameter(f"{path}.weight")
            weight.copy_(on_grid(weight, grid.bits))


def _quantise_input(grid: Grid, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (input_on_grid(args[0], grid), *args[1:])


def quantised(model: nn.Module, grids: Grids) -> nn.Module:
    """The network as it computes on these grids: a copy, or itself where there are none."""
    if not grids:
        return model
    model = copy.deepcopy(model)
    Quantisers(grids).attach(model)
    return model


def mean_bits(model: nn.Module, grids: Grids) -> float:
    """Of a quantised weight."""
    sizes = {path: model.get_parameter(f"{path}.weight").numel() for path in grids}
    return sum(sizes[path] * grid.bits for path, grid in grids.items()) / sum(sizes.values())


def to_json(grids: Grids) -> dict[str, list[float]]:
    return {path: [grid.bits, grid.scale, grid.zero] for path, grid in grids.items()}


def from_json(values: object, model: nn.Module) -> dict[str, Grid]:
    """Raises ValueError for what `to_json` does not write of this network."""
    if not isinstance(values, dict) or not values.keys() <= set(layers(model)):
        raise BadInput("quantised is not a table of this network's convolutions and linear layers")
    grids = {}
    for path, value in values.items():
        match value:
            case [int(bits), int() | float() as scale, int(zero)] if (
                LEAST <= bits <= MOST and 0 < scale < float("inf") and 0 <= zero <= LEVELS
            ):
                grids[path] = Grid(bits, float(scale), zero)
            case _:
                raise BadInput(f"quantised {path} as {value!r}: expected bits from 2 to 8, a scale, a zero point")
    return grids
