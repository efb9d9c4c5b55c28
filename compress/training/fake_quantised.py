"""Training on integers: layers compute on grids while they are trained, with weights that are zero held at zero.

FakeQuantised is the pressure of all that do so; EightBits is the plain one, every convolution and linear layer with
weights and inputs of 8 bits. Source: Jacob et al., CVPR 2018, arXiv 1712.05877, section 3; gradients pass rounding
straight through. Batch norms stay as they are: by a factor for whole output channels a weight stays on its grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.data.sets import Data
from kerf.compress.network import surgery
from kerf.compress.training import distributed, quantise
from kerf.compress.training.pressure import Plan, Pressure
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import MOST, Grid, Quantisers
from kerf.compress.training.sample import first, held_out
from kerf.compress.training.train import Optim, State, fit, plan_of

CALIBRATED = 256  # images on which inputs are seen
RATE = 0.1  # of the run's learning rate: the network is trained, and its steps on the grids are small


class FakeQuantised(Pressure):
    """What is trained is the quantised network. ``begin`` chooses the grids and hands them to ``install``."""

    def attach(self, model: nn.Module, graph: Any, units: Sequence[Any], plan: Plan) -> None:
        self.model, self.quantisers, self.sample, self.attached = model, Quantisers({}), plan.sample, True

    def install(self, grids: quantise.Grids) -> None:
        self.quantisers.detach()
        self.quantisers = Quantisers(grids)
        self.quantisers.attach(self.model)

    def fold(self, model: nn.Module) -> None:
        """Plain layers with weights on their grids. Inputs are no longer quantised: `grids` says how they are to be."""
        self.quantisers.detach()
        self.quantisers.settle(model)
        self.attached = False

    @property
    def grids(self) -> quantise.Grids:
        return self.quantisers.grids

    def state(self) -> dict[str, Tensor]:
        return rows(self.grids)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.install(grids_of(state))

    def report(self, model: nn.Module) -> str:
        bits = [grid.bits for grid in self.grids.values()]
        return f"weights of {min(bits)} to {max(bits)} bits, {quantise.mean_bits(model, self.grids):.2f} in the mean"


class EightBits(FakeQuantised):
    def begin(self, model: nn.Module) -> None:
        images = (x for x, _ in first(held_out(self.sample), CALIBRATED))
        found = quantise.calibrate(model, images, settled=True)
        self.install({path: Grid(MOST, *numbers) for path, numbers in found.items()})


def rows(grids: quantise.Grids) -> dict[str, Tensor]:
    return {path: torch.tensor([g.bits, g.scale, g.zero], dtype=torch.double) for path, g in grids.items()}


def grids_of(rows: Mapping[str, Tensor]) -> dict[str, Grid]:
    found = {path: row.tolist() for path, row in rows.items()}
    return {path: Grid(int(bits), scale, int(zero)) for path, (bits, scale, zero) in found.items()}


def fine_tune(
    model: nn.Module,
    data: Data,
    optim: Optim,
    epochs: int,
    masks: Mapping[str, Tensor],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    teachers: Sequence[nn.Module] = (),
    history: Sequence[dict[str, Any]] = (),
    on_history: Callable[[list[dict[str, Any]]], None] | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Trains on 8 bits at RATE times the rate of ``optim``, in place: the best epoch's weights, on their grids.

    masks: path of a parameter -> bool, False where it stays 0. ``on_history`` gets the rows of ``history`` and those of
    this phase after every epoch.
    """
    pressure = EightBits()
    rate = dataclasses.replace(optim.lr, base=RATE * optim.lr.base).over(epochs)
    own = dataclasses.replace(optim, lr=rate)

    def keep(state: State) -> None:
        if on_history and distributed.first():
            on_history(state.history)

    model.to(device)
    pressure.attach(model, None, (), plan_of(data, own, 0.0, device))
    pressure.begin(model)
    fit(
        model, data, own, device=device, seed=seed, pressure=pressure, teachers=teachers,
        after_step=partial(surgery.zero, model, masks), state=State(history=list(history)),
        on_epoch=keep, reporter=reporter, title="int8",
    )  # fmt: skip
    pressure.fold(model)
