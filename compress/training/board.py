"""TensorBoard: curves of every epoch, and histograms of the weights that are pruned."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn


def writer() -> Callable[..., Any]:
    """torch's SummaryWriter. Raises ImportError, with one line, where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"--tensorboard: {error}; pip install '.[train]'") from error
    return SummaryWriter


class Board:
    """Writes to `folder`/tensorboard."""

    def __init__(self, folder: Path):
        self.open, self.done = partial(writer(), folder / "tensorboard"), 0
        self.writer: Any = None

    def write(self, rows: list[dict[str, Any]], model: nn.Module) -> None:
        """`rows` of metrics.jsonl, all so far; those not yet written become points, counted over all phases."""
        if self.writer is None:  # only now is it known how many rows a resumed run has; those behind are written again
            self.done = len(rows) - 1
            self.writer = self.open(purge_step=self.done)
        for step, row in enumerate(rows[self.done :], self.done):
            for name, value in row.items():
                part = "validation" if name.startswith("val_") else "training"
                if isinstance(value, (int, float)) and name != "epoch":
                    self.writer.add_scalar(f"{part}/{name}", value, step)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4 and len(rows) > self.done:
                self.writer.add_histogram(f"weights/{name}", parameter.detach().float(), len(rows) - 1)
        self.done = len(rows)
        self.writer.flush()
