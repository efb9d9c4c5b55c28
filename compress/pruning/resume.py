"""A run after its last finished epoch, as one file. Knows neither the recipe nor the command line."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from msgspec import Meta
from torch import Tensor, nn

from kerf import gate
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training import checkpoint
from kerf.compress.training.pressure import Pressure
from kerf.compress.training.train import Metrics, State
from kerf.errors import BadInput
from kerf.failures import printable


@dataclass(frozen=True)
class Snapshot:
    """A network on the way, which teaches later phases."""

    model: nn.Module  # in evaluation mode, without gradients
    kept: dict[str, Tensor]  # as a course's

    @classmethod
    def of(cls, model: nn.Module, kept: dict[str, Tensor]) -> "Snapshot":
        return cls(copy.deepcopy(model).eval().requires_grad_(False), dict(kept))


@dataclass
class Course:
    """Where a run stands: all that changes on its way but the weights."""

    graph: DependencyGraph
    masks: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # parameter path -> bool, True = keep
    kept: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # set -> (width,) indices of what is left
    sparsity: float = 0.0  # that was asked for so far
    part: float = 0.0  # of the layers, that it was asked of
    measured: dict[str, Metrics] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    snapshots: list[Snapshot] = dataclasses.field(default_factory=list)

    def keep(self, chosen: Mapping[str, Tensor]) -> None:
        """Set -> bool, which of the channels that it still had are left now."""
        for name, kept in chosen.items():
            self.kept[name] = self.kept.get(name, torch.arange(len(kept)))[kept]


Count = Annotated[int, Meta(ge=0, lt=2**31)]


class _Metrics(TypedDict):
    """Of a Metrics, what is saved of it."""

    top1: float
    top5: float
    loss: float
    images: Count
    predictions: tuple[int, ...]
    skipped: tuple[str, ...]


class _State(TypedDict):
    """The header of a saved run."""

    phase: Count
    attached: bool
    epoch: Count
    best_score: tuple[float, float] | None
    history: list[dict[str, Any]]
    measured: dict[str, _Metrics]


@dataclass(frozen=True)
class Saved:
    """The default is a run that has not begun."""

    # "model.…", "momentum.…", "best.…", "average.…", "mask.…", "kept.…", "pressure.…" and, of each snapshot,
    # "snapshot.0.model.…", "snapshot.0.kept.…"
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    phase: int = 0  # index of the schedule's phase
    attached: bool = False  # the method's own parameters are among the model's
    epoch: int = 0
    best_score: tuple[float, float] | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    measured: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name + "."): v for k, v in self.tensors.items() if k.startswith(name + ".")}

    def snapshots(self, dense: nn.Module, graph: DependencyGraph) -> list[Snapshot]:
        """`dense` is the network that the run began with, which is left as it is."""
        found = list[Snapshot]()
        while weights := self.part(f"snapshot.{len(found)}.model"):
            kept = {name: index.long() for name, index in self.part(f"snapshot.{len(found)}.kept").items()}
            found.append(Snapshot.of(dense, kept))
            surgery.narrow(found[-1].model, graph, kept)
            found[-1].model.to(memory_format=torch.channels_last).load_state_dict(weights)
            found[-1].model.requires_grad_(False)
        return found

    @classmethod
    def of(cls, model: nn.Module, course: Course, pressure: Pressure, state: State, phase: int) -> "Saved":
        parts = {
            "model": model.state_dict(),
            "momentum": state.momentum,
            "best": state.best,
            "average": state.average,
            "mask": course.masks,
            "kept": course.kept,
            "pressure": pressure.state() if pressure.attached else {},
        }
        for i, snapshot in enumerate(course.snapshots):
            parts |= {f"snapshot.{i}.model": snapshot.model.state_dict(), f"snapshot.{i}.kept": snapshot.kept}
        tensors = {f"{part}.{name}": t for part, named in parts.items() for name, t in named.items()}
        # made again by the final evaluation; a thousand numbers in a header help nobody
        plain = {
            name: dataclasses.asdict(dataclasses.replace(m, predictions=(), skipped=()))
            for name, m in course.measured.items()
        }
        return cls(tensors, phase, pressure.attached, state.epoch, state.best_score, state.history, plain)

    def save(self, file: Path) -> None:
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tensors"}
        checkpoint.save(file, self.tensors, rest)

    @classmethod
    def load(cls, file: Path) -> "Saved":
        """Raises FileNotFoundError, or ValueError for a file that is no checkpoint of a run."""
        tensors, state = checkpoint.load(file)
        if "phase" not in state:
            raise BadInput(f"{file} holds weights, not a run to resume; give it as --pretrained_model")
        expected = "what a run saves there; start the run again"
        if unknown := sorted(set(state) - set(_State.__annotations__)):
            raise BadInput(f"{file}: {printable(unknown[0])!r} in its header; expected {expected}")
        return cls(tensors, **gate.converted(state, _State, f"{file}: its header", expected))
