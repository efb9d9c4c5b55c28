"""What a run of the command line works on, once its input has been read and checked."""

from dataclasses import dataclass

import torch
from torch import nn

from kerf.compress.command.args import Args
from kerf.compress.data.sets import Data
from kerf.compress.network import cost
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.schedules import Budget
from kerf.compress.training.quantise import Grids


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked: from here on only the work itself can fail."""

    args: Args
    method: str
    device: torch.device
    data: Data
    model: nn.Module
    graph: DependencyGraph
    recipe: Recipe
    budget: Budget
    kept: dict[str, torch.Tensor]  # channels that the given weights had left, if they are of a narrow network
    grids: Grids  # of the given weights, if they are of a quantised network
    dense: cost.Cost  # of the network before this run

    @property
    def example(self) -> torch.Tensor:
        return torch.zeros(1, 3, self.data.image_size, self.data.image_size)

    @property
    def by_macs(self) -> bool:
        return self.recipe.cuts and self.args.pr_target is None
