"""Least squares: what reads channels makes up for those that go, so that its outputs stay near what they were.

Source: He et al., ICCV 2017, arXiv 1707.06168; in closed form, from the second moments Σ = E[x xᵀ] of its inputs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kerf.compress.measures.moments import Data, second_moments
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.surgery import Keep

DAMPING = 1e-6  # of the mean of Σ's diagonal: dead inputs have none


def readers(model: nn.Module, graph: DependencyGraph, sets: Sequence[str]) -> list[str]:
    """Weights that read any of these sets entry by entry: linear layers and ungrouped 1×1 convolutions."""

    def pointwise(path: str) -> bool:
        weight, module = surgery.tensor_at(model, path), model.get_submodule(path.rpartition(".")[0])
        return weight[0, 0].numel() == 1 and getattr(module, "groups", 1) == 1

    chosen = [s for s in graph.sets if s.name in sets]
    paths = dict.fromkeys(path for s in chosen for path, _ in s.columns)
    return [path for path in paths if path not in graph.reused and pointwise(path)]


def moments(model: nn.Module, graph: DependencyGraph, sets: Sequence[str], data: Data) -> dict[str, Tensor]:
    """Weight path -> Σ (I, I), f64, of every one of `readers`."""
    found = readers(model, graph, sets)
    return second_moments(model, found, data) if found else {}


@torch.no_grad()
def refit(model: nn.Module, graph: DependencyGraph, keep: Keep, sigma: Mapping[str, Tensor]) -> None:
    """W_S ← argmin E‖W x − W_S x_S‖² for the inputs S that `keep` leaves, in place: W_S + W_R Σ_RS Σ_SS⁻¹.

    W_R reads those that go. Where none goes, nothing changes. `sigma`: as `moments` gives it.
    """
    for path, moment in sigma.items():
        weight = surgery.tensor_at(model, path)
        gone = torch.zeros(weight.shape[1], dtype=torch.bool)
        for channels in graph.sets:
            if channels.name in keep and (path, 1) in channels.columns:
                gone |= channels.entries((path, 1), ~keep[channels.name])
        r, s = (index.nonzero().flatten().to(weight.device) for index in (gone, ~gone))
        if len(r):
            kept = moment[s][:, s]
            kept.diagonal().add_(DAMPING * moment.diagonal().mean().clamp(min=1e-12))
            matrix = weight.flatten(1).double()
            share = torch.linalg.solve(kept, moment[s][:, r])  # Σ_SS⁻¹ Σ_SR (S, R)
            matrix[:, s] += matrix[:, r] @ share.T
            weight.copy_(matrix.view_as(weight))
