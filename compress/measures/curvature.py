"""How a loss curves in single weights: estimates of the diagonal of its Hessian, each (O, I, kh, kw) or (d,).

Those of (d,), d = I · kh · kw, are of a layer's output in place of the loss, and alike for all output channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.measures.moments import Data, second_moments


@dataclass(frozen=True)
class Numbers:
    images: int
    probes: int
    damping: float
    seed: int


def fisher(model: nn.Module, paths: Sequence[str], data: Data, _: Numbers) -> dict[str, Tensor]:
    """mean over images of (∂L/∂w)²: the diagonal of the empirical Fisher matrix."""
    weights = [model.get_parameter(path) for path in paths]
    sums, images = [torch.zeros_like(w) for w in weights], 0
    for x, y in data:
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            for total, gradient in zip(sums, torch.autograd.grad(loss, weights)):
                total.addcmul_(gradient, gradient)
        images += len(x)
    return {path: total / images for path, total in zip(paths, sums)}


def hutchinson(model: nn.Module, paths: Sequence[str], data: Data, numbers: Numbers) -> dict[str, Tensor]:
    """E[v ∘ Hv] over v = ±1: the diagonal of the Hessian of the mean loss."""
    weights = [model.get_parameter(path) for path in paths]
    random = torch.Generator().manual_seed(numbers.seed)
    sums, images = [torch.zeros_like(w) for w in weights], 0
    for x, y in data:
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
        for _ in range(numbers.probes):
            signs = [(torch.randint(2, w.shape, generator=random) * 2 - 1).to(w) for w in weights]
            products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
            for total, v, hv in zip(sums, signs, products):
                total.add_(v * hv, alpha=len(x) / numbers.probes)
        images += len(x)
    return {path: total / images for path, total in zip(paths, sums)}


def covariance(model: nn.Module, paths: Sequence[str], data: Data, _: Numbers) -> dict[str, Tensor]:
    """2 Σ_ii, of the squared error that pruning causes in the layer's output. No labels."""
    return {path: 2 * moment.diagonal() for path, moment in second_moments(model, paths, data).items()}


def obs(model: nn.Module, paths: Sequence[str], data: Data, numbers: Numbers) -> dict[str, Tensor]:
    """2 / [Σ⁻¹]_ii: the same error when the weights that stay are chosen anew."""
    found = {}
    for path, moment in second_moments(model, paths, data).items():
        damping = numbers.damping * moment.diagonal().mean().clamp(min=1e-12)
        found[path] = 2 / torch.linalg.inv(moment + damping * torch.eye(len(moment)).to(moment)).diagonal()
    return found
