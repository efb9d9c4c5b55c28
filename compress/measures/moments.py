"""Second moments of what layers read, over images and pixels."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.network.watching import inputs

Data = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def second_moments(model: nn.Module, paths: Sequence[str], data: Data) -> dict[str, Tensor]:
    """Weight path -> Σ = E[x xᵀ] (d, d) of the d = I · kh · kw inputs that each of its filters multiplies."""
    owners = {path.rpartition(".")[0]: path for path in paths}
    sums = {path: torch.zeros((), dtype=torch.float64) for path in paths}
    counts = dict.fromkeys(paths, 0)

    def see(owner: str, layer: nn.Module, x: Tensor) -> None:
        for patches in _patches(layer, x):  # (d, positions)
            sums[owners[owner]] = sums[owners[owner]].to(x.device) + (patches @ patches.T).double()
            counts[owners[owner]] += patches.shape[1]

    inputs(model, list(owners), (x for x, _ in data), see)
    return {path: total / counts[path] for path, total in sums.items()}


def _patches(layer: nn.Module, x: Tensor) -> Iterable[Tensor]:
    if isinstance(layer, nn.Linear):
        return [x.reshape(-1, x.shape[-1]).T]
    layer = cast(nn.Conv2d, layer)
    padded = F.pad(x, layer._reversed_padding_repeated_twice)
    return (F.unfold(image[None], layer.kernel_size, layer.dilation, 0, layer.stride)[0] for image in padded)


@torch.no_grad()
def correlations(model: nn.Module, paths: Sequence[str], data: Data) -> dict[str, Tensor]:
    """Module path -> (C, C) correlation of the channels of its input (B, C, H, W); 0 with a constant one."""
    none = torch.zeros((), dtype=torch.float64)
    sums = dict.fromkeys(paths, (none, none, 0))  # Σ x, Σ x xᵀ, how many

    def see(path: str, _: nn.Module, x: Tensor) -> None:
        x = x.transpose(0, 1).flatten(1).double()  # (C, B · H · W)
        ones, squares, count = sums[path]
        sums[path] = ones.to(x.device) + x.sum(1), squares.to(x.device) + x @ x.T, count + x.shape[1]

    inputs(model, paths, (x for x, _ in data), see)
    found = {}
    for path, (ones, squares, count) in sums.items():
        covariance = squares / count - torch.outer(ones, ones) / count**2
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        rho = (covariance / torch.outer(deviation, deviation)).nan_to_num(0, 0, 0).clamp(-1, 1)
        found[path] = rho.fill_diagonal_(1)
    return found
