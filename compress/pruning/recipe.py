"""Recipe: a pruning method as a value, and the one way to carry out its choice.

A method fills the slots; nothing here asks which method it is.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import answer, evaluated, images_in, tensors
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

Orders = Callable[[nn.Module, DependencyGraph, Sequence[Any], float, Sample], dict[str, Tensor]]
# model, graph, units before it, the share of them that goes, sample -> group of channels -> (width,) its order

SAMPLE = 64  # images that show a removal what activations look like


def nothing(model: nn.Module, graph: DependencyGraph, units: Sequence[Units], sample: Sample) -> None:
    """For criteria to which a unit says enough."""


def by_l1(model: nn.Module, graph: DependencyGraph, _: Sequence[Any], __: float, ___: Sample) -> dict[str, Tensor]:
    return surgery.l1_orders(model, graph)


@dataclass(frozen=True)
class Recipe:
    granularity: Granularity
    criterion: Criterion
    scope: Scope = scopes.local
    schedule: Schedule = schedules.one_shot
    rearrange: bool = False  # order channels before the units are formed
    pressure: Pressure = NOTHING
    remove: Remove = removal.plain
    observe: Observe = nothing  # what the criterion has to see of the network and of data, before it scores any unit
    orders: Orders = by_l1
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


def rearrange(
    model: nn.Module, recipe: Recipe, graph: DependencyGraph, example: Any, sparsity: float, sample: Sample
) -> None:
    """Moves channels, in place, if the recipe asks for that."""
    if recipe.rearrange:
        units = recipe.granularity.split(model, graph, example)
        with evaluated(model):
            orders = recipe.orders(model, graph, units, sparsity, sample)
        surgery.permute(model, graph, dict(zip(orders, distributed.from_first(list(orders.values())))))


def prune(
    model: nn.Module,
    recipe: Recipe,
    graph: DependencyGraph,
    example: Any,
    sparsity: float,
    sample: Sample | None = None,
) -> Removal:
    """Rearranges if asked, scores, selects and removes, in place. ``example`` is an input (1, C, H, W), a
    tuple or a dict of such.

    `sample` is asked by methods that have to see activations or gradients; without it, it is the example, of class 0.
    Of several processes all remove what rank 0 chooses.
    """
    if sample is None:
        label = torch.zeros(images_in(example), dtype=torch.long, device=tensors(example)[0].device)
        sample = lambda: iter([(example, label)])  # noqa: E731
    rearrange(model, recipe, graph, example, sparsity, sample)
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


def check(
    model: nn.Module,
    recipe: Recipe,
    graph: DependencyGraph,
    example: Any,
    sparsity: float,
    strict: bool = False,
) -> DependencyGraph:
    """Raises BadInput, before anything is trained, for what would fail after it.

    That is a network without units and a target beyond its floors. A network whose code counts channels, in a way that
    the trace does not show, does not run with fewer: the graph that comes back leaves such sets whole and says so in
    its note; where ``strict``, they are refused.
    """
    units: Sequence[Any] = recipe.granularity.split(model, graph, example)
    keep = _reached(model, recipe, graph, example, sparsity, units)
    if not recipe.cuts or (reason := _fails(model, graph, example, removal.by_set(units, keep))) is None:
        return graph
    refusal = BadInput(f"{type(model).__name__} does not run with fewer channels: {reason}")
    if strict:
        raise refusal
    counted = [u.path for u in units if _fails(model, graph, example, {u.path: torch.arange(u.count) > 0})]
    if not counted:
        raise refusal
    some = ", ".join(counted[:8]) + (f" and {len(counted) - 8} more" if len(counted) > 8 else "")
    whole = graph.frozen(counted, f"its code counts the channels of {some}, which keep all of them")
    return check(model, recipe, whole, example, sparsity, strict=True)


def _reached(
    model: nn.Module, recipe: Recipe, graph: DependencyGraph, example: Any, sparsity: float, units: Sequence[Any]
) -> list[Tensor]:
    """What could be kept; raises BadInput where there is nothing to prune or too little."""
    kind, name = recipe.granularity, type(model).__name__
    if not units:
        none = f"{name} has nothing that this method prunes: no such channels or layers"
        if getattr(kind, "full", True) is False:
            none += "; full=True (--full) adds linear layers"
        raise BadInput(f"{none}; {graph.note}" if graph.note else none)
    reach = recipe.reach or recipe.scope
    try:
        return reach([u.sizes.float() for u in units], units, sparsity)
    except BadInput as error:
        if not isinstance(kind, Channel) or kind.residual:
            raise
        more = replace(kind, residual=True).split(model, graph, example)
        try:
            reach([u.sizes.float() for u in more], more, sparsity)
        except BadInput:
            raise error from None
        raise BadInput(f"{error}; residual=True (--residual), which prunes sums of layers too, reaches it") from None


def _fails(model: nn.Module, graph: DependencyGraph, example: Any, keep: Mapping[str, Tensor]) -> str | None:
    """Why the network does not run with these channels alone; None if it does."""
    narrow = copy.deepcopy(model)
    surgery.cut(narrow, graph, keep)
    try:
        with torch.no_grad():
            answer(narrow.eval(), example)
    except (RuntimeError, AssertionError, ValueError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
