"""TensorBoard: curves of every epoch, and histograms of the weights that are pruned."""

from pathlib import Path
from typing import Any

from torch import nn


class Board:
    """Writes to `folder`/tensorboard. Raises ImportError, with one line, where tensorboard is not installed."""

    def __init__(self, folder: Path, first_epoch: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"--tensorboard: {error}; pip install 'kerf[train]'") from error
        # rows after the one that a resumed run continues from are written again
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_epoch)
        self.done = first_epoch

    def write(self, rows: list[dict[str, Any]], model: nn.Module) -> None:
        """`rows` of metrics.jsonl, all so far; those not yet written become points, counted over all phases."""
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
