"""run(): the one pruning loop, from trained or random weights to a pruned, trained network.

Masks live beside the network, never in it: surgery.zero applies them after every optimiser step, so what is trained,
saved and exported is a plain module with zeros in it. Channels leave it altogether.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.data.sets import Data
from kerf.compress.network import narrowing, surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import scopes
from kerf.compress.pruning.recipe import Recipe, prune
from kerf.compress.pruning.removal import Masks, by_set
from kerf.compress.pruning.resume import Course, Saved, Snapshot
from kerf.compress.pruning.schedules import Budget, Phase
from kerf.compress.training import distributed
from kerf.compress.training.pressure import NOTHING, AtRest
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import Grids
from kerf.compress.training.train import (
    Metrics,
    Optim,
    State,
    evaluate,
    fit,
    parts_of,
    plan_of,
    recalibrate,
    sample_of,
)
from kerf.errors import BadInput
from kerf.failures import one_line, printable


@dataclass(frozen=True)
class Outcome:
    dense: Metrics  # on the test part, before pruning
    pruned: Metrics  # right after pruning, before any fine-tuning
    final: Metrics
    masks: Masks
    kept: dict[str, Tensor]  # set -> (width,) indices of the channels that are left, where some are not
    grids: Grids  # of the layers that are quantised
    history: list[dict[str, Any]]  # rows of metrics.jsonl


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
    saved = distributed.on_first(partial(Saved.load, file)) if resume and file else Saved()
    model.to(device).to(memory_format=torch.channels_last)
    course = Course(graph, history=saved.history, measured={k: Metrics(**v) for k, v in saved.measured.items()})
    under_way = _Run(
        model, recipe, data, budget, seed, optim or Optim(), recalibration, device, file, on_history,
        reporter or Reporter(), course,
    )  # fmt: skip
    return under_way.through(saved)


@dataclass
class _Run:
    model: nn.Module
    recipe: Recipe
    data: Data
    budget: Budget
    seed: int
    optim: Optim
    recalibration: int
    device: torch.device | str
    file: Path | None
    on_history: Callable[[list[dict[str, Any]]], None] | None
    reporter: Reporter
    course: Course

    def __post_init__(self) -> None:
        size = self.data.image_size
        self.example = torch.zeros(1, 3, size, size, device=self.device)
        self.teachers = [copy.deepcopy(self.model).eval()] if self.optim.distill or self.optim.distill_features else []
        self.phases = list(self.recipe.schedule(self.budget))

    def through(self, saved: Saved) -> Outcome:
        """All phases, from what was `saved`."""
        if saved.tensors:
            try:
                self._restore(saved)
            except (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError, StopIteration) as error:
                said = f"{self.file} is no run of this network and these settings ({one_line(error)})"
                raise error if isinstance(error, BadInput) else BadInput(f"{said}; start the run again") from error
        for index, phase in enumerate(self.phases):
            if index >= saved.phase:
                self._take(index, phase, saved)
        pressure, measured = self.recipe.pressure, self.course.measured
        if pressure.attached:
            pressure.fold(self.model)
        ends = measured["dense"], measured["pruned"], measured["final"]
        return Outcome(*ends, self.course.masks, self.course.kept, pressure.grids, self.course.history)

    def _restore(self, saved: Saved) -> None:
        course, model, dense = self.course, self.model, self.course.graph
        if saved.phase >= len(self.phases) or saved.epoch > self.phases[saved.phase].epochs:
            raise BadInput(
                f"{self.file} is at epoch {saved.epoch} of phase {saved.phase}, which this run does not have"
            )
        course.snapshots = saved.snapshots(model, dense)
        course.sparsity, course.part = self.phases[saved.phase].sparsity, self.phases[saved.phase].part
        course.kept = {name: index.long() for name, index in saved.part("kept").items()}
        course.graph = surgery.narrow(model, dense, course.kept) if course.kept else dense
        if saved.attached:
            self._attach(next(phase for phase in reversed(self.phases[: saved.phase + 1]) if phase.pressure))
            self.recipe.pressure.restore(saved.part("pressure"))
        model.load_state_dict(saved.part("model"))
        _refuse_others(saved, "momentum", dict(model.named_parameters()))
        _refuse_others(saved, "best", model.state_dict(), whole=True)
        _refuse_others(saved, "average", model.state_dict(), whole=True)
        masks = saved.part("mask")
        course.masks = {
            path: torch.empty_like(p, dtype=torch.bool).copy_(masks[path])
            for path, p in model.named_parameters()
            if path in masks
        }

    def _take(self, index: int, phase: Phase, saved: Saved) -> None:
        """One phase: removal if it is due, training, what is measured and kept."""
        model, course = self.model, self.course
        if (phase.sparsity, phase.part) > (course.sparsity, course.part) and phase.sparsity:
            self._remove(phase.sparsity, phase.part)
        if phase.epochs:
            state = State(history=course.history)
            if saved.tensors and index == saved.phase:
                state = State(saved.epoch, saved.part("momentum"), saved.part("best"), saved.best_score, course.history)
                state.average = saved.part("average")
            elif phase.pressure and not self.recipe.pressure.attached:
                self._attach(phase)
                self.recipe.pressure.begin(model)
            if phase.guarded and not state.epoch:
                state.consider(model.state_dict(), evaluate(model, parts_of(self.data)[1], self.device))
            self._train(index, phase, state)
        if phase.epochs or "final" not in course.measured:
            course.measured["final"] = evaluate(model, self.data.test, self.device)
            self.reporter.say(f"{phase.name}: test top-1 {course.measured['final'].top1:.2f} %")
        if phase.pressure and self._goes_on_without(index):
            self.recipe.pressure.fold(model)
            course.masks |= self.recipe.pressure.zeros()
            course.measured["final"] = evaluate(model, self.data.test, self.device)
        if phase.snapshot:
            course.snapshots.append(Snapshot.of(model, course.kept))
        course.measured.setdefault("dense", course.measured["final"])
        course.measured.setdefault("pruned", course.measured["dense"])

    def _goes_on_without(self, index: int) -> bool:
        """Whether the next phase neither has a pressure nor removes anything, which would release this one's."""
        following = self.phases[index + 1 :][:1]
        reached = self.course.sparsity, self.course.part
        return any(not p.pressure and not ((p.sparsity, p.part) > reached and p.sparsity) for p in following)

    def _optim_of(self, phase: Phase) -> Optim:
        own = dataclasses.replace(self.optim, lr=(phase.rate or self.optim.lr).over(phase.epochs))
        taught = phase.lessons
        return dataclasses.replace(own, distill=taught.weight, temperature=taught.temperature) if taught else own

    def _attach(self, phase: Phase) -> None:
        units = self.recipe.granularity.split(self.model, self.course.graph, self.example)
        plan = plan_of(self.data, self._optim_of(phase), self.budget.sparsity, self.device)
        plan = dataclasses.replace(plan, cut=self._cut, phase=phase.name)
        self.recipe.pressure.attach(self.model, self.course.graph, units, plan)
        self.model.to(self.device).to(memory_format=torch.channels_last)

    def _cut(self, units: Sequence[Any], keep: Sequence[Tensor]) -> tuple[DependencyGraph, Sequence[Any]]:
        """Between two steps of a phase: of several processes all cut what rank 0 chooses."""
        course, chosen = self.course, by_set(units, distributed.from_first(list(keep)))
        if not all(bool(kept.all()) for kept in chosen.values()):
            assert self.state.sgd is not None  # it is training that calls this
            course.graph = narrowing.cut(self.model, course.graph, chosen, self.state.sgd)
            course.keep(chosen)
            units = self.recipe.granularity.split(self.model, course.graph, self.example)
        return course.graph, units

    def _remove(self, sparsity: float, part: float) -> None:
        """Prunes that part of the layers up to `sparsity` of what the run began with."""
        course, model = self.course, self.model
        again = dataclasses.replace(self.recipe, rearrange=self.recipe.rearrange and not course.masks)
        if part < 1:
            again = dataclasses.replace(again, scope=scopes.of_first(again.scope, part))
        outcome = prune(model, again, course.graph, self.example, sparsity, sample_of(self.data, self.device))
        course.graph, course.masks = outcome.graph, outcome.masks
        course.sparsity, course.part = sparsity, part
        course.keep(outcome.kept)
        model.to(self.device).to(memory_format=torch.channels_last)
        if self.recalibration and self.data.train:
            recalibrate(model, self.data.train, self.recalibration, self.device)
        course.measured["pruned"] = course.measured["final"] = evaluate(model, self.data.test, self.device)
        self.reporter.say(
            f"pruned {sparsity:.0%}{': ' if outcome.note else ''}{outcome.note}: "
            f"test top-1 {course.measured['pruned'].top1:.2f} % before fine-tuning"
        )

    def _train(self, index: int, phase: Phase, state: State) -> None:
        model, course, pressure, self.state = self.model, self.course, self.recipe.pressure, state
        at_rest = AtRest(pressure) if pressure.attached else NOTHING
        course.history = fit(
            model,
            self.data,
            self._optim_of(phase),
            device=self.device,
            seed=self.seed * 101 + index,
            pressure=pressure if phase.pressure else at_rest,
            teachers=[s.model for s in course.snapshots] if phase.lessons else self.teachers,
            after_step=partial(surgery.zero, model, course.masks) if course.masks else None,
            keep_best=not phase.pressure,
            state=state,
            on_epoch=partial(self._keep, index),
            reporter=self.reporter,
            title=phase.name,
        ).history

    def _keep(self, index: int, state: State) -> None:
        """After every epoch of phase `index`."""
        pressure = self.recipe.pressure
        if self.file and distributed.first():
            Saved.of(self.model, self.course, pressure, state, index).save(self.file)
        if self.on_history and distributed.first():
            self.on_history(state.history)
        if pressure.attached and (line := pressure.report(self.model)):
            self.reporter.say(f"  {line}")


def _refuse_others(saved: Saved, part: str, own: Mapping[str, torch.Tensor], whole: bool = False) -> None:
    """Raises ValueError for tensors of other names or shapes than the network's own; ``whole``: and where some lack."""
    lacking = own.keys() - saved.part(part).keys()
    if whole and lacking and saved.part(part):
        raise ValueError(f"{part} lacks {printable(min(lacking))!r}")
    for name, tensor in saved.part(part).items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(f"{part} of {printable(name)!r} {tuple(tensor.shape)}")
