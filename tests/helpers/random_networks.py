"""Networks whose every parameter matters, so that a wrong permutation cannot go unnoticed."""

import torch
from torch import nn


def randomise(model: nn.Module, *shape: int) -> nn.Module:
    """Random weights, biases and batch norms, in double precision, where only a real difference is above 1e-9.

    All come from one generator: the network is the same whatever a test drew before. Statistics are near those of
    random images (8, *shape), so that the signal neither dies nor explodes on its way, and biases are positive, so that
    not all of the few units of a squeeze-and-excite block can be dead at once.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in model.double().modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, 0.05, 0.4, generator=generator)
    for norm in norms:
        norm.momentum = 1.0  # the next batch's statistics replace the present ones
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(norm.bias, 0, 0.2, generator=generator)
    with torch.no_grad():
        model.train()(images(8, *shape))
    for norm in norms:
        if norm.track_running_stats:
            spread = norm.running_var.sqrt()
            norm.running_mean += 0.3 * spread * torch.randn(spread.shape, generator=generator, dtype=torch.double)
            norm.running_var *= 0.5 + 1.5 * torch.rand(spread.shape, generator=generator, dtype=torch.double)
    return model.eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest output."""
    return float((a - b).abs().max() / a.abs().max())
