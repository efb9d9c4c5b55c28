"""Granularities: a weight seen as units that are kept or pruned as one. Reads weights, never writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kerf.compress.network.blocks import CONVOLUTIONS, blocks
from kerf.compress.network.cost import positions
from kerf.compress.network.graph import DependencyGraph
from kerf.errors import BadInput


@dataclass(frozen=True)
class Units:
    """Things of which one decision each keeps or prunes one."""

    path: str  # what they are units of: "layer1.0.conv1.weight"
    count: int
    rows: Callable[[], Tensor]  # (count, elems) of the present weights; units that are smaller end in zeros
    sizes: Tensor  # (count,) weights in each unit
    macs: Tensor  # (count,) multiply-accumulates per image saved by pruning each alone

    @property
    def gone(self) -> int:
        """How many have left the network since it was traced. What is zeroed has not left."""
        return 0


@dataclass(frozen=True)
class WeightUnits(Units):
    """Parts of one weight, which pruning makes zero."""

    shape: torch.Size  # (O, I, kh, kw) or (O, I)
    mask: Callable[[Tensor], Tensor]  # (count,) of units, e.g. bool, True = keep -> the same, of the weight's shape
    weight: Callable[[], Tensor]  # the present weight


def averaged(unit: WeightUnits, values: Tensor) -> Tensor:
    """(numel,) numbers of single weights -> (count,): their mean over each unit."""
    owner = unit.mask(torch.arange(unit.count, device=values.device)).flatten()
    return values.new_zeros(unit.count).index_add_(0, owner, values) / unit.sizes.to(values)


class Granularity(Protocol):
    def split(self, model: nn.Module, graph: DependencyGraph, example: Any) -> tuple[Units, ...]:
        """Units of every layer that is pruned, in the model's order. ``example`` is one input (1, C, H, W)."""
        ...


@dataclass(frozen=True)
class OneByN:
    """1×N: a unit is n consecutive output kernels at one input channel, W[r·n : (r+1)·n, c, :, :].

    Source: Lin et al., TPAMI 2022, arXiv 2105.14713, section 3.2. Units are ordered by block row r, then c. If n does
    not divide O, the last block row is short: O mod n kernels high. ``full`` adds linear layers (the classifier).
    """

    n: int
    full: bool = False
    heights: Mapping[str, int] = field(default_factory=dict)  # weights that have another n of their own

    def __post_init__(self) -> None:
        least = min(self.n, *self.heights.values(), self.n)
        if least < 1:
            raise BadInput(f"N is {least}; expected at least 1 output kernel per block")

    def split(self, model: nn.Module, graph: DependencyGraph, example: Any) -> tuple[WeightUnits, ...]:
        def cut(path: str, weight: nn.Parameter, positions: int) -> WeightUnits:
            return _blocks(path, weight, positions, self.height(path))

        return _split(model, graph, example, self.full, cut, self.height)

    def height(self, path: str) -> int:
        """N of that weight's blocks."""
        return self.heights.get(path, self.n)


@dataclass(frozen=True)
class Weight:
    """A unit is one weight (unstructured pruning)."""

    full: bool = False

    def split(self, model: nn.Module, graph: DependencyGraph, example: Any) -> tuple[WeightUnits, ...]:
        return _split(model, graph, example, self.full, _elements)


@dataclass(frozen=True)
class Filter:
    """A unit is one output filter W[o], which is zeroed and keeps its place."""

    full: bool = False

    def split(self, model: nn.Module, graph: DependencyGraph, example: Any) -> tuple[WeightUnits, ...]:
        return _split(model, graph, example, self.full, _filters)


@dataclass(frozen=True)
class Patterns:
    """The kernels W[o, c] of every layer; of a 3×3 one first what lies outside a pattern can go, then the rest.

    Source: Ma et al., AAAI 2020, arXiv 1909.05073 (PCONV). Units 0 … O·I - 1 of a 3×3 layer are the entries of each
    kernel, o first, outside its pattern, units O·I … 2·O·I - 1 those within it. A kernel's pattern is the one in
    ``library``, bool (P, 9) with equally many entries each, that keeps most of its present weights, see `nearest`.
    Other layers have the whole kernels as units. ``full`` adds linear layers, whose kernels are single weights.
    """

    library: Tensor
    full: bool = False

    def split(self, model: nn.Module, graph: DependencyGraph, example: Any) -> tuple[WeightUnits, ...]:
        return _split(model, graph, example, self.full, partial(_kernels, library=self.library))


def nearest(kernels: Tensor, library: Tensor) -> Tensor:
    """(K, 9) -> (K,) index of the pattern in ``library``, bool (P, 9), with the largest L2 norm kept; of equals the
    first.
    """
    kept = kernels.square() @ library.to(kernels).T
    return kept.sort(dim=1, descending=True, stable=True).indices[:, 0]  # argmax may take any of equal ones


def prunable(
    model: nn.Module, graph: DependencyGraph, full: bool, height: Callable[[str], int] = lambda path: 1
) -> list[str]:
    """Paths of the weights that are pruned, in the model's order.

    All convolutions that mix channels, but for those that read the network input: depthwise ones stay dense, and
    grouped ones that units of ``height(path)`` kernels would straddle. With ``full`` linear layers too. A layer that is
    called under two names counts once.
    """

    def mixes_channels(path: str, module: nn.Module) -> bool:
        if module._parameters.get("weight") is None:  # computed, as by weight_norm: the layer stays dense
            return False
        if isinstance(module, CONVOLUTIONS):
            filters = module.out_channels // module.groups
            return module.groups == 1 or (module.groups < module.in_channels and filters % height(path) == 0)
        return full and isinstance(module, nn.Linear)

    found = {f"{name}.weight": module for name, module in model.named_modules()}
    return [path for path, module in found.items() if mixes_channels(path, module) and path not in graph.stems]


def _split(
    model: nn.Module,
    graph: DependencyGraph,
    example: Any,
    full: bool,
    cut: Callable[..., WeightUnits],
    height: Callable[[str], int] = lambda path: 1,
) -> tuple[WeightUnits, ...]:
    used, paths = positions(model, example), prunable(model, graph, full, height)
    return tuple(cut(path, model.get_parameter(path), used[path]) for path in paths if path in used)


def _blocks(path: str, weight: nn.Parameter, positions: int, n: int) -> WeightUnits:
    outputs, inputs = weight.shape[:2]
    rows = -(-outputs // n)  # block rows, the last one perhaps short

    def view() -> Tensor:
        return blocks(weight.detach(), n).flatten(0, 1)  # (R·I, n·kh·kw)

    def mask(kept: Tensor) -> Tensor:
        kernels = kept.view(rows, inputs).repeat_interleave(n, 0)[:outputs]  # (O, I)
        return kernels.view(outputs, inputs, *[1] * (weight.ndim - 2)).expand(weight.shape).contiguous()

    heights = torch.full((rows,), n, device=weight.device)
    heights[-1] = outputs - (rows - 1) * n
    sizes = heights.repeat_interleave(inputs) * weight[0, 0].numel()
    return WeightUnits(path, rows * inputs, view, sizes, sizes * positions, weight.shape, mask, weight.detach)


def _elements(path: str, weight: nn.Parameter, positions: int) -> WeightUnits:
    sizes = torch.ones(weight.numel(), dtype=torch.long, device=weight.device)
    return WeightUnits(
        path,
        weight.numel(),
        lambda: weight.detach().reshape(-1, 1),
        sizes,
        sizes * positions,
        weight.shape,
        lambda kept: kept.view(weight.shape),
        weight.detach,
    )


def _filters(path: str, weight: nn.Parameter, positions: int) -> WeightUnits:
    outputs = weight.shape[0]
    sizes = torch.full((outputs,), weight[0].numel(), device=weight.device)
    return WeightUnits(
        path,
        outputs,
        lambda: weight.detach().reshape(outputs, -1),
        sizes,
        sizes * positions,
        weight.shape,
        lambda kept: kept.view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).contiguous(),
        weight.detach,
    )


def _kernels(path: str, weight: nn.Parameter, positions: int, library: Tensor) -> WeightUnits:
    count = weight.shape[0] * weight.shape[1]
    patterned = weight.shape[2:] == (3, 3)

    def flat() -> Tensor:
        return weight.detach().reshape(count, -1)

    def inside() -> Tensor:
        """(K, 9) bool"""
        return library.to(weight.device)[nearest(flat(), library)]

    def rows() -> Tensor:
        if not patterned:
            return flat()
        kept = inside().int()
        first = kept.argsort(dim=1, stable=True)  # entries outside the pattern, then those within
        sorted_ = flat().gather(1, first)
        out, within = sorted_.split([9 - taps, taps], dim=1)
        width = max(taps, 9 - taps)
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (out, within)])

    def mask(kept: Tensor) -> Tensor:
        if not patterned:
            return kept.view(*weight.shape[:2], *[1] * (weight.ndim - 2)).expand(weight.shape).contiguous()
        outside, within = kept.view(2, count, 1)
        return torch.where(inside(), within, outside).view(weight.shape)

    taps = int(library[0].sum())
    parts = [9 - taps, taps] if patterned else [weight[0, 0].numel()]
    sizes = torch.tensor(parts, device=weight.device).repeat_interleave(count)
    return WeightUnits(path, len(sizes), rows, sizes, sizes * positions, weight.shape, mask, weight.detach)
