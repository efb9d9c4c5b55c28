"""Runs of the command line: what they wrote, and killing them in the middle."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Flags of a run of a second or two, and of one whose learning rate starts at once, for methods that act while training
SMALL = ["--data_set=synthetic", "--arch=resnet20", "--subset=32", "--train_batch_size=8", "--device=cpu"]
BRIEF = [*SMALL, "--lr_policy=cos_step", "--warmup_length=0"]


def read(path: Path):
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Within, runs compute in f64: training multiplies differences in rounding, those of f32 beyond comparison."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Within, the optimiser takes that many steps, and the next one raises KeyboardInterrupt."""
    left, step = iter(range(1000)), torch.optim.SGD.step

    def interrupted(self, *args):
        if next(left) == steps:
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupted)
        yield
