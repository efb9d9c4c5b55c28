"""run(): the one pruning loop, from trained or random weights to a pruned, trained network.

Masks live beside the network, never in it: surgery.zero applies them after every optimiser step, so what is trained,
saved and exported is a plain module with zeros in it. Channels leave it altogether.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.data.sets import Data
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import Recipe, prune
from kerf.compress.pruning.removal import Masks
from kerf.compress.pruning.resume import Course, Saved, Snapshot
from kerf.compress.pruning.schedules import Budget, Phase
from kerf.compress.training import distributed
from kerf.compress.training.pressure import NOTHING, AtRest
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import Grids
from kerf.compress.training.sample import Sample
from kerf.compress.training.train import Metrics, Optim, State, evaluate, fit, plan_of, recalibrate, sample_of


@dataclass(frozen=True)
class Outcome:
    dense: Metrics  # on the test part, before pruning
    pruned: Metrics  # right after pruning, before any fine-tuning
    final: Metrics
    masks: Masks
    kept: dict[str, Tensor]  # set -> (width,) indices of the channels that are left, where some are not
    grids: Grids  # of the layers that are quantised
    history: list[dict[str, Any]]  # rows of metrics.jsonl


def _remove(course: Course, model: nn.Module, recipe: Recipe, example: Tensor, sparsity: float, sample: Sample) -> str:
    """Prunes up to `sparsity` of what the run began with; a line for the log."""
    again = dataclasses.replace(recipe, rearrange=recipe.rearrange and not course.masks)
    outcome = prune(model, again, course.graph, example, sparsity, sample)
    course.graph, course.masks, course.sparsity = outcome.graph, outcome.masks, sparsity
    for name, kept in outcome.kept.items():
        course.kept[name] = course.kept.get(name, torch.arange(len(kept)))[kept]
    return outcome.note


def run(
    model: nn.Module,
    recipe: Recipe,
    data: Data,
    budget: Budget,
    seed: int,
    *,
    graph: DependencyGraph,
    optim: Optim | None = None,
    recalibration: int = 0,
    device: torch.device | str = "cpu",
    file: Path | None = None,
    resume: bool = False,
    on_history: Callable[[list[dict[str, Any]]], None] | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Takes `model` through the recipe's phases, in place.

    After pruning, batch norm statistics are taken anew from `recalibration` training batches. With `file`, every
    finished epoch is saved there; with `resume` too, the run continues from it, on the same losses as if it had not
    been stopped. `on_history` gets all rows so far after every epoch. Of several processes, rank 0 alone writes.
    """
    optim, reporter, pressure = optim or Optim(), reporter or Reporter(), recipe.pressure
    example = torch.zeros(1, 3, data.image_size, data.image_size, device=device)
    saved = distributed.on_first(partial(Saved.load, file)) if resume else Saved()
    model.to(device=device, memory_format=torch.channels_last)
    teachers = [copy.deepcopy(model).eval()] if optim.distill else []
    phases = list(recipe.schedule(budget))
    sample = sample_of(data, device)
    course = Course(graph, history=saved.history, measured={k: Metrics(**v) for k, v in saved.measured.items()})

    def optim_of(phase: Phase) -> Optim:
        own = dataclasses.replace(optim, lr=(phase.rate or optim.lr).over(phase.epochs))
        taught = phase.lessons
        return dataclasses.replace(own, distill=taught.weight, temperature=taught.temperature) if taught else own

    def attach(phase: Phase) -> None:
        units = recipe.granularity.split(model, course.graph, example)
        pressure.attach(model, course.graph, units, plan_of(data, optim_of(phase), budget.sparsity, device))
        model.to(device=device, memory_format=torch.channels_last)

    if saved.tensors:
        course.snapshots = saved.snapshots(model, graph)
        course.sparsity = phases[saved.phase].sparsity
        course.kept = {name: index.long() for name, index in saved.part("kept").items()}
        course.graph = surgery.narrow(model, graph, course.kept) if course.kept else graph
        if saved.attached:
            attach(next(phase for phase in reversed(phases[: saved.phase + 1]) if phase.pressure))
            pressure.restore(saved.part("pressure"))
        model.load_state_dict(saved.part("model"))
        course.masks = {path: torch.empty_like(p, dtype=torch.bool).copy_(saved.part("mask")[path])
                        for path, p in model.named_parameters() if path in saved.part("mask")}  # fmt: skip

    for index, phase in enumerate(phases):
        if index < saved.phase:
            continue
        if phase.sparsity > course.sparsity:
            note = _remove(course, model, recipe, example, phase.sparsity, sample)
            model.to(device=device, memory_format=torch.channels_last)
            if recalibration:
                recalibrate(model, data.train, recalibration, device)
            course.measured["pruned"] = course.measured["final"] = evaluate(model, data.test, device)
            reporter.say(
                f"pruned {phase.sparsity:.0%}{': ' if note else ''}{note}: "
                f"test top-1 {course.measured['pruned'].top1:.2f} % before fine-tuning"
            )
        if phase.epochs:
            state = State(history=course.history)
            if saved.tensors and index == saved.phase:
                state = State(saved.epoch, saved.part("momentum"), saved.part("best"), saved.best_score, course.history)
            elif phase.pressure and not pressure.attached:
                attach(phase)
                pressure.begin(model)

            def keep(state: State, index: int = index) -> None:
                if file and distributed.first():
                    Saved.of(model, course, pressure, state, index).save(file)
                if on_history and distributed.first():
                    on_history(state.history)
                if pressure.attached and (line := pressure.report(model)):
                    reporter.say(f"  {line}")

            course.history = fit(
                model,
                data,
                optim_of(phase),
                device=device,
                seed=seed * 101 + index,
                pressure=pressure if phase.pressure else AtRest(pressure) if pressure.attached else NOTHING,
                teachers=[s.model for s in course.snapshots] if phase.lessons else teachers,
                after_step=partial(surgery.zero, model, course.masks) if course.masks else None,
                keep_best=not phase.pressure,
                state=state,
                on_epoch=keep,
                reporter=reporter,
                title=phase.name,
            ).history
        if phase.epochs or "final" not in course.measured:
            course.measured["final"] = evaluate(model, data.test, device)
            reporter.say(f"{phase.name}: test top-1 {course.measured['final'].top1:.2f} %")
        if phase.snapshot:
            course.snapshots.append(Snapshot.of(model, course.kept))
        course.measured.setdefault("dense", course.measured["final"])
        course.measured.setdefault("pruned", course.measured["dense"])
    if pressure.attached:
        pressure.fold(model)
    measured = course.measured
    ends = measured["dense"], measured["pruned"], measured["final"]
    return Outcome(*ends, course.masks, course.kept, pressure.grids, course.history)
