"""Recipe: a pruning method as a value, and the one way to carry out its choice.

A method fills the slots; nothing here asks which method it is.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import evaluated
from kerf.compress.pruning import removal, schedules, scopes
from kerf.compress.pruning.removal import Images, Removal, Remove
from kerf.compress.pruning.schedules import Budget, Phase
from kerf.compress.pruning.scopes import Scope
from kerf.compress.training import distributed
from kerf.compress.training.pressure import NOTHING, Pressure
from kerf.compress.training.sample import Sample
from kerf.compress.units.channels import Channel
from kerf.compress.units.weights import Granularity, Units
from kerf.errors import BadInput

# Units are of the kind that the recipe's granularity gives, here and in scopes, removals and pressures.
Criterion = Callable[[Any], Tensor]  # (count,), larger = keep
Schedule = Callable[[Budget], Iterator[Phase]]
Observe = Callable[[nn.Module, DependencyGraph, Sequence[Any], Sample], None]

SAMPLE = 64  # images that show a removal what activations look like


def nothing(model: nn.Module, graph: DependencyGraph, units: Sequence[Units], sample: Sample) -> None:
    """For criteria to which a unit says enough."""


@dataclass(frozen=True)
class Recipe:
    granularity: Granularity
    criterion: Criterion
    scope: Scope = scopes.local
    schedule: Schedule = schedules.one_shot
    rearrange: bool = False  # order channels by L1 before the units are formed
    pressure: Pressure = NOTHING
    remove: Remove = removal.plain
    observe: Observe = nothing  # what the criterion has to see of the network and of data, before it scores any unit
    reach: Scope | None = None  # tells from units' sizes what can be reached, where the scope needs more than scores

    def __post_init__(self) -> None:
        if self.remove in ((removal.zero,) if self.cuts else (removal.cut, removal.cut_folded)):
            kind, units = type(self.granularity).__name__, "channels" if self.cuts else "parts of weights"
            raise BadInput(f"{kind} units are {units}, which {self.remove.__name__} cannot remove; leave remove out")

    @property
    def cuts(self) -> bool:
        """Whether units are channels, which leave the network, not weights that become zero."""
        return isinstance(self.granularity, Channel)

    @property
    def zeroes_at_once(self) -> bool:
        """Whether it zeroes weights of a trained network, and asks for nothing else."""
        return not self.cuts and self.pressure is NOTHING


@torch.no_grad()
def scores(
    model: nn.Module, recipe: Recipe, graph: DependencyGraph, units: Sequence[Units], sample: Sample
) -> list[Tensor]:
    """(count,) for each of `units`, all on the same weights. Criteria see the network as it is evaluated."""
    with evaluated(model):
        recipe.observe(model, graph, units, sample)
    return [recipe.criterion(u) for u in units]


def prune(
    model: nn.Module,
    recipe: Recipe,
    graph: DependencyGraph,
    example: Tensor,
    sparsity: float,
    sample: Sample | None = None,
) -> Removal:
    """Rearranges if asked, scores, selects and removes, in place. ``example`` is an input (1, C, H, W).

    `sample` is asked by methods that have to see activations or gradients; without it, it is the example, of class 0.
    Of several processes all remove what rank 0 chooses.
    """
    if sample is None:
        label = torch.zeros(len(example), dtype=torch.long, device=example.device)
        sample = lambda: iter([(example, label)])  # noqa: E731
    if recipe.rearrange:
        orders = surgery.l1_orders(model, graph)
        surgery.permute(model, graph, dict(zip(orders, distributed.from_first(list(orders.values())))))
    units = recipe.granularity.split(model, graph, example)
    keep = distributed.from_first(recipe.scope(scores(model, recipe, graph, units, sample), units, sparsity))
    return remove(model, recipe, graph, units, keep, lambda: next(sample())[0][:SAMPLE])


def remove(
    model: nn.Module,
    recipe: Recipe,
    graph: DependencyGraph,
    units: Sequence[Units],
    keep: Sequence[Tensor],
    images: Images,
) -> Removal:
    """Releases the pressure, if it is there, then removes what `keep` drops."""
    if recipe.pressure.attached:
        recipe.pressure.release(model)
    return recipe.remove(model, graph, units, keep, images)


def check(model: nn.Module, recipe: Recipe, graph: DependencyGraph, example: Tensor, sparsity: float) -> None:
    """Raises ValueError, before anything is trained, for what would fail after it.

    That is a network without units, a target beyond its floors, and one whose code counts channels in a way that the
    trace does not show: it does not run with fewer.
    """
    units: Sequence[Any] = recipe.granularity.split(model, graph, example)
    if not units:
        raise BadInput(f"{type(model).__name__} has nothing that this method prunes: no such channels or layers")
    keep = (recipe.reach or recipe.scope)([u.sizes.float() for u in units], units, sparsity)
    if not recipe.cuts:
        return
    narrow = copy.deepcopy(model)
    removal.cut(narrow, graph, units, keep, lambda: example)
    try:
        with torch.no_grad():
            narrow.eval()(example)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{type(model).__name__} does not run with fewer channels: {reason}") from None
