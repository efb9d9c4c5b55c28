"""A run after its last finished epoch, as one file. Knows neither the recipe nor the command line."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress import checkpoint
from compress.train import Metrics, State


@dataclass(frozen=True)
class Saved:
    """The default is a run that has not begun."""

    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # "model.…", "momentum.…", "best.…", "mask.…"
    phase: int = 0  # index of the schedule's phase
    epoch: int = 0
    best_score: tuple[float, float] | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    measured: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name + "."): v for k, v in self.tensors.items() if k.startswith(name + ".")}

    @classmethod
    def of(
        cls, model: nn.Module, masks: Mapping[str, Tensor], state: State, phase: int, measured: Mapping[str, Metrics]
    ) -> "Saved":
        parts = {"model": model.state_dict(), "momentum": state.momentum, "best": state.best, "mask": masks}
        tensors = {f"{part}.{name}": t for part, named in parts.items() for name, t in named.items()}
        # predictions are made again by the final evaluation; a thousand numbers in a header help nobody
        plain = {name: dataclasses.asdict(dataclasses.replace(m, predictions=())) for name, m in measured.items()}
        return cls(tensors, phase, state.epoch, state.best_score, state.history, plain)

    def save(self, file: Path) -> None:
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tensors"}
        checkpoint.save(file, self.tensors, rest)

    @classmethod
    def load(cls, file: Path) -> "Saved":
        """Raises FileNotFoundError, or ValueError for a file that is no checkpoint of a run."""
        tensors, state = checkpoint.load(file)
        if "phase" not in state:
            raise ValueError(f"{file} holds weights, not a run to resume; give it as --pretrained_model")
        score = state.pop("best_score")
        return cls(tensors, **state, best_score=tuple(score) if score else None)
