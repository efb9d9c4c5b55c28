"""What layers cost by the share of them that goes, where a method's scores are prices in the loss: no layer is tried.

For methods whose criterion says by how much the loss rises with each unit (obs). Source of the use: Frantar and
Alistarh, "SPDY", ICML 2022, arXiv 2201.13096, which shares out a target by such curves.
"""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import Recipe, rearrange, scores
from kerf.compress.pruning.sensitivity import GRID
from kerf.compress.second_order.curve import rise
from kerf.compress.training.sample import Sample

HALF = 0.5  # of each layer's blocks: channels are ordered for that, before the shares are known


@dataclass(frozen=True)
class PriceCurves:
    """``curves``: a layer's weight -> (len(GRID),) by how much the loss is expected to rise for each share of GRID."""

    curves: dict[str, Tensor]

    def harm(self, path: str) -> Tensor:
        return self.curves[path]

    def to_json(self) -> dict[str, Any]:
        return {"shares": list(GRID), "loss": {path: curve.tolist() for path, curve in self.curves.items()}}


def price_curves(model: nn.Module, recipe: Recipe, graph: DependencyGraph, example: Any, sample: Sample) -> PriceCurves:
    """Of a copy of `model`, rearranged first where the recipe asks for that."""
    model = copy.deepcopy(model)
    rearrange(model, recipe, graph, example, HALF, sample)
    units = recipe.granularity.split(model, graph, example)
    found = zip(units, scores(model, recipe, graph, units, sample))
    return PriceCurves({unit.path: rise(score * unit.sizes, GRID) for unit, score in found})
