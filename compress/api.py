"""Pruning from Python: `kerf.prune` and `kerf.sensitivity`, on any torch module of a user's own."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from kerf.compress.methods import METHODS
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import evaluated
from kerf.compress.pruning.given import HALF, Given, example_of, in_single
from kerf.compress.pruning.pruned import Pruned, Work
from kerf.compress.pruning.recipe import Recipe, check, nothing
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.sensitivity import LEVELS, Sensitivity, measure
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import NOTHING, Plan, unseen
from kerf.errors import BadInput, Unsupported

__all__ = ["Pruned", "prune", "sensitivity"]

EPOCHS = 20  # that the steps are taken for, where neither the user nor the data says how long one is


def prune(
    model: nn.Module,
    method: str | Recipe = "one_by_n",
    *,
    example: Any,
    sparsity: float | None = None,
    macs: float | None = None,
    n: int = 4,
    rearrange: bool = False,
    full: bool = False,
    residual: bool | None = None,
    skip: Sequence[str] = (),
    min_width: int = 1,
    round_to: int = 1,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    steps: int | None = None,
    rate: float | Callable[[int], float] | None = None,
    momentum: float = 0.9,
    epoch: int | None = None,
    strict: bool = False,
) -> Pruned:
    """Prunes ``model`` in place, or attaches a method that prunes it while the user's own loop trains.

    ``method``: a name from `kerf methods`, with ``options``, the numbers that --set takes, or a Recipe. ``example``: an
    input (1, C, H, W); of a network with several inputs a tuple of them, or a dict by name. Give ``sparsity``, the
    share to remove of each layer or of the channels, or ``macs``, the share of the MACs to keep, as --flops_target, for
    methods that cut channels; neither is half. ``n``: kernels in a block; ``rearrange``: orders channels first, which
    changes no output; ``full``: linear layers too, as the classifier; ``residual``, ``skip``, ``min_width``,
    ``round_to``: which channels may go. ``data``: batches (images, labels), for methods that look.

    Channels that reach an operator without a rule all stay, in place: one warning, kept as ``Pruned.note``, names
    operators and layers. Where ``strict``, such a network is refused.

    Methods with training of their own take ``steps``, those of the loop, ``rate``, its learning rate or a function of
    the step, its ``momentum``, and ``epoch``, the steps of one (by default the length of ``data``). They answer with a
    Pruned that is attached: train on its ``loss`` while it holds the optimiser, then call ``finish``.

    The device and the type of the weights stay. Raises BadInput, with the network's function as it was.
    """
    example = example_of(model, example)
    settings = Settings(n, full, rearrange, seed, sparsity is None, residual, tuple(skip), min_width, round_to)
    name, recipe = _recipe(method, settings, options or {})
    goes = _share(name, recipe, sparsity, macs)
    trains = _trains(name, recipe)
    given = None if data is None else Given(data, model, example)
    plan = _plan_of(name, model, recipe, given, goes, steps, rate, momentum, epoch)
    with evaluated(model), in_single(model):
        whole = example_of(model, example)
        graph = _traced(model, recipe, whole, strict)
        if goes:
            graph = check(model, recipe, graph, whole, goes, strict)
        if graph.note and (recipe.cuts or recipe.rearrange or not graph.sets):
            warnings.warn(graph.note, stacklevel=2)
        pruned = Pruned(model, name, Work(recipe, graph, whole, plan))
        (pruned.attach if trains else pruned.finish)()
    return pruned


def _plan_of(
    name: str,
    model: nn.Module,
    recipe: Recipe,
    given: Given | None,
    goes: float,
    steps: int | None,
    rate: float | Callable[[int], float] | None,
    momentum: float,
    epoch: int | None,
) -> Plan:
    """When what goes. Raises BadInput where a method lacks images, or is told of a training that it does not have."""
    trains = _trains(name, recipe)
    if given is None and (trains or (name in METHODS and "images" in METHODS[name].needs)):
        raise BadInput(f"method {name} looks at images: give data, batches (images, labels) such as a DataLoader's")
    plan = Plan(0, lambda step: 0.0, goes, sample=unseen if given is None else given)
    if trains and given is not None:
        return _plan(name, model, plan, given, steps, rate, momentum, epoch)
    if steps is not None or rate is not None:
        raise BadInput(f"method {name} prunes at once: leave steps and rate out")
    return plan


def sensitivity(
    model: nn.Module,
    method: str | Recipe = "one_by_n",
    *,
    example: Tensor,
    data: Iterable[Any],
    n: int = 4,
    rearrange: bool = False,
    full: bool = False,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    levels: Sequence[float] = LEVELS,
) -> Sensitivity:
    """Loss and top-1 on ``data`` with one layer pruned at a time, to each of ``levels``; the model is left as it is.

    For methods that zero weights at once. ``data``: batches (images, labels) that can be read again and again.
    """
    example = example_of(model, example)
    _, recipe = _recipe(method, Settings(n, full, rearrange, seed, by_macs=True), options or {})
    given = Given(data, model, example)
    if not len(given):
        raise BadInput("data does not say how many batches it holds: give a list of some, or a DataLoader")
    with evaluated(model), in_single(model):
        example = example_of(model, example)
        graph = DependencyGraph.trace(model, example)
        return measure(model, recipe, graph, example, given, len(given), example.device, levels)


def _recipe(method: str | Recipe, settings: Settings, options: Mapping[str, Any]) -> tuple[str, Recipe]:
    """The method's name and its recipe. Raises BadInput for what is not in the table and what it does not take."""
    if isinstance(method, Recipe):
        if options or replace(settings, by_macs=False) != Settings(n=4):
            raise BadInput("a Recipe has settings and numbers of its own: leave those of methods out")
        return "of this recipe", method
    if method not in METHODS:
        raise BadInput(f"no method {method}: expected one of {', '.join(METHODS)}")
    row = METHODS[method]
    if unknown := next((option for option in options if option not in row.numbers), None):
        having = f"it has {', '.join(row.numbers)}" if row.numbers else "it has none"
        raise BadInput(f"options: {unknown} is no number of method {method}; {having}")
    if row.target == "nothing":
        raise BadInput(f"method {method} removes nothing: it is the control that is trained alone")
    if row.target == "macs" and not settings.by_macs:
        raise BadInput(f"method {method} removes MACs, from whichever layers: give macs, not sparsity")
    return method, row(settings, **options)


def _traced(model: nn.Module, recipe: Recipe, example: Any, strict: bool) -> DependencyGraph:
    """Its graph; parts of weights can become zero in a network that cannot be traced, too."""
    try:
        return DependencyGraph.trace(model, example, strict)
    except BadInput as error:
        ordered = recipe.cuts or recipe.rearrange or recipe.pressure is not NOTHING or recipe.observe is not nothing
        if strict or ordered:
            raise
        try:
            graph = DependencyGraph.untraced(model, example)
        except Exception:  # the model fails on the example, traced or not
            raise error from None
        return replace(graph, note=f"{error}; weights are pruned without its graph, in the order that they have")


def _share(name: str, recipe: Recipe, sparsity: float | None, macs: float | None) -> float:
    """What is to be removed, in the recipe's own measure."""
    if macs is None:
        return Budget(0.5 if sparsity is None else sparsity).sparsity
    if sparsity is not None:
        raise BadInput("sparsity and macs both say how much to remove: give one")
    if not recipe.cuts:
        raise BadInput(f"method {name} removes a share of each layer: give sparsity, not macs")
    if not 0 < macs < 1:
        raise BadInput(f"macs is {macs}: expected a share of the MACs to keep, above 0 and below 1")
    return 1 - macs


def _trains(name: str, recipe: Recipe) -> bool:
    """Whether it prunes while a network trains. Raises Unsupported for schedules that a loop cannot follow."""
    phases = list(recipe.schedule(Budget(0.5, 0, 100)))
    cut = next((i for i, phase in enumerate(phases) if phase.sparsity), len(phases))
    if any(phase.pressure or phase.lessons or phase.snapshot or phase.part < 1 for phase in phases[cut:]):
        raise Unsupported(
            f"method {name} goes on after pruning, with training of its own: run it with its schedule, as "
            f"kerf prune --method {name}"
        )
    return any(phase.pressure for phase in phases[:cut])


def _plan(
    name: str,
    model: nn.Module,
    plan: Plan,
    given: Given,
    steps: int | None,
    rate: float | Callable[[int], float] | None,
    momentum: float,
    epoch: int | None,
) -> Plan:
    """What a method that trains is told of the loop."""
    if any(p.dtype in HALF for p in model.parameters()):
        raise Unsupported(f"method {name} trains: give the network in float32, and train it under torch.autocast")
    if not steps or steps < 1 or rate is None:
        raise BadInput(f"method {name} prunes while the network trains: give steps and rate, those of your loop")
    follow = rate if callable(rate) else partial(_constant, rate)
    each = epoch or len(given) or max(1, steps // EPOCHS)
    return replace(plan, steps=steps, rate=follow, momentum=momentum, each=min(each, steps), accuracy=given.accuracy)


def _constant(rate: float, step: int) -> float:
    return rate
