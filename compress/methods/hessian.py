"""Hessian-style: weights go whose removal the loss is expected to feel least, ½ H w², over all layers together.

Paper: Li et al., "Exploring Weight Importance and Hessian Bias in Model Pruning", 2020, arXiv 2006.10903
    (the abstract alone was read); LeCun et al., "Optimal Brain Damage", NeurIPS 1989; Hassibi and Stork, "Second order
    derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992
Code:  none known
Differs: filled in is how H is estimated in a network; the paper's theorems are about linear models, where this is
    |θ| √Σ. By obs, the weights that stay are not moved to make up for those that go: fine-tuning does that.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kerf.compress.measures.curvature import Numbers, covariance, fisher, hutchinson, obs
from kerf.compress.measures.moments import Data
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.sample import Sample, first
from kerf.compress.units.weights import Weight, WeightUnits, averaged
from kerf.errors import BadInput

Estimate = Callable[[nn.Module, Sequence[str], Data, Numbers], dict[str, Tensor]]
ESTIMATES: dict[str, tuple[Estimate, Scope]] = {  # errors of different layers' outputs do not compare
    "fisher": (fisher, scopes.overall),
    "hutchinson": (hutchinson, scopes.overall),
    "covariance": (covariance, scopes.local),
    "obs": (obs, scopes.local),
}


class Curvature:
    """A criterion: ½ H_ii w², which the loss is expected to rise by when w goes; the mean over larger units."""

    def __init__(self, estimate: Estimate, numbers: Numbers):
        self.estimate, self.numbers = estimate, numbers

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], sample: Sample) -> None:
        with torch.enable_grad():
            data = first(sample, self.numbers.images)
            self.found = self.estimate(model, [u.path for u in units], data, self.numbers)

    def score(self, unit: WeightUnits) -> Tensor:
        w = unit.weight().flatten()
        found = self.found[unit.path].detach().to(w).flatten()  # of every weight, or alike for all output channels
        return averaged(unit, w.square() * found.repeat(len(w) // len(found)) / 2)


def hessian(
    settings: Settings, *, curvature: str = "fisher", images: int = 256, probes: int = 16, damping: float = 1e-3
) -> Recipe:
    """Removes the share p of all weights, those with the smallest ½ H w²; then fine-tunes.

    curvature: fisher or hutchinson over all layers, covariance or obs (of inputs, without labels) in every layer;
    images: training images it is estimated on; probes: random vectors of hutchinson; damping: of obs, of the mean of
    the diagonal.
    """
    if curvature not in ESTIMATES:
        raise BadInput(f"curvature is {curvature!r}: expected one of {', '.join(ESTIMATES)}")
    estimate, scope = ESTIMATES[curvature]
    cost = Curvature(estimate, Numbers(images, probes, damping, settings.seed))
    return Recipe(Weight(full=settings.full), cost.score, scope, observe=cost.observe)
