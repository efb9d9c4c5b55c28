"""Recipe: a pruning method as a value. run(): the one pruning loop.

A method fills the slots; nothing here asks which method it is. Masks live beside the network, never in it: surgery.zero
applies them after every optimiser step, so what is trained, saved and exported is a plain module with zeros in it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import schedules, scopes, surgery
from compress.data import Data
from compress.graph import DependencyGraph
from compress.progress import Reporter
from compress.resume import Saved
from compress.schedules import Budget, Phase
from compress.train import Metrics, Optim, State, evaluate, fit
from compress.units import Granularity, Units

Criterion = Callable[[Units], Tensor]  # (count,), larger = keep
Scope = Callable[[Sequence[Tensor], Sequence[Units], float], list[Tensor]]  # bool (count,) each, True = keep
Schedule = Callable[[Budget], Iterator[Phase]]
Masks = dict[str, Tensor]  # parameter path -> bool of its shape, True = keep


@dataclass(frozen=True)
class Settings:
    """What a user may choose about a method; each method takes what it needs."""

    n: int = 16  # consecutive output kernels in a block
    full: bool = False  # prune the classifier too
    rearrange: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    granularity: Granularity
    criterion: Criterion
    scope: Scope = scopes.local
    schedule: Schedule = schedules.one_shot
    rearrange: bool = False  # order channels by L1 before the units are formed


@dataclass(frozen=True)
class Outcome:
    dense: Metrics  # on the test part, before pruning
    pruned: Metrics  # right after pruning, before any fine-tuning
    final: Metrics
    masks: Masks
    history: list[dict[str, Any]]  # rows of metrics.jsonl


def prune(model: nn.Module, recipe: Recipe, graph: DependencyGraph, example: Tensor, sparsity: float) -> Masks:
    """Rearranges if asked, scores, selects and zeroes, in place. Returns the masks that keep the zeros there."""
    if recipe.rearrange:
        surgery.permute(model, graph, surgery.l1_orders(model, graph))
    units = recipe.granularity.split(model, graph, example)
    keep = recipe.scope([recipe.criterion(u) for u in units], units, sparsity)
    parameters = dict(model.named_parameters())
    masks = {}
    for unit, kept in zip(units, keep):
        # in the parameter's memory format: the multiplication after every step is then one pass over both
        mask = torch.empty_like(parameters[unit.path], dtype=torch.bool)
        masks[unit.path] = mask.copy_(unit.mask(kept))
    surgery.zero(model, masks)
    return masks


def run(
    model: nn.Module,
    recipe: Recipe,
    data: Data,
    budget: Budget,
    seed: int,
    *,
    graph: DependencyGraph,
    optim: Optim | None = None,
    device: torch.device | str = "cpu",
    file: Path | None = None,
    resume: bool = False,
    on_history: Callable[[list[dict[str, Any]]], None] | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Takes `model` through the recipe's phases, in place.

    With `file`, every finished epoch is saved there; with `resume` too, the run continues from it, on the same losses
    as if it had not been stopped. `on_history` gets all rows so far after every epoch.
    """
    optim, reporter = optim or Optim(), reporter or Reporter()
    example = torch.zeros(1, 3, data.image_size, data.image_size, device=device)
    saved = Saved.load(file) if resume else Saved()
    model.to(device=device, memory_format=torch.channels_last)
    if saved.tensors:
        model.load_state_dict(saved.part("model"))
    masks = {path: torch.empty_like(p, dtype=torch.bool).copy_(saved.part("mask")[path])
             for path, p in model.named_parameters() if path in saved.part("mask")}  # fmt: skip
    measured: dict[str, Metrics] = {name: Metrics(**values) for name, values in saved.measured.items()}
    history = saved.history

    for index, phase in enumerate(recipe.schedule(budget)):
        if index < saved.phase:
            continue
        if phase.sparsity > 0 and not masks:
            masks = prune(model, recipe, graph, example, phase.sparsity)
            measured["pruned"] = measured["final"] = evaluate(model, data.test, device)
            reporter.say(f"pruned {phase.sparsity:.0%}: test top-1 {measured['pruned'].top1:.2f} % before fine-tuning")
        if phase.epochs:
            state = State(history=history)
            if saved.tensors and index == saved.phase:
                state = State(saved.epoch, saved.part("momentum"), saved.part("best"), saved.best_score, history)

            def keep(state: State, index: int = index, masks: Masks = masks) -> None:
                if file:
                    Saved.of(model, masks, state, index, measured).save(file)
                if on_history:
                    on_history(state.history)

            history = fit(
                model,
                data,
                dataclasses.replace(optim, lr=optim.lr.over(phase.epochs)),
                device=device,
                seed=seed * 101 + index,
                after_step=partial(surgery.zero, model, masks) if masks else None,
                state=state,
                on_epoch=keep,
                reporter=reporter,
                title=phase.name,
            ).history
        if phase.epochs or "final" not in measured:
            measured["final"] = evaluate(model, data.test, device)
            reporter.say(f"{phase.name}: test top-1 {measured['final'].top1:.2f} %")
        measured.setdefault("dense", measured["final"])
        measured.setdefault("pruned", measured["dense"])
    return Outcome(measured["dense"], measured["pruned"], measured["final"], masks, history)
