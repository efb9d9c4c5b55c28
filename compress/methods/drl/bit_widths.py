"""Bit widths: an agent picks how many bits every layer's weight gets; then the network is trained on those grids.

Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization", CVPR 2019, arXiv 1811.08886
(github.com/mit-han-lab/haq).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.methods.drl import ddpg
from kerf.compress.methods.drl.layer_features import constant, state
from kerf.compress.network import surgery
from kerf.compress.network.surgery import tensor_at
from kerf.compress.training import distributed, quantise
from kerf.compress.training.fake_quantised import CALIBRATED, FakeQuantised, grids_of, rows
from kerf.compress.training.quantise import LEAST, MOST, Grid, Quantisers
from kerf.compress.training.sample import Sample, accuracy, first, held_out

WHOLE = 32  # bits of an f32 weight
RATE = 1e-3  # learning rate of an episode's training
GAIN = 0.1  # reward of a percent of accuracy


def bits_of(action: float, least: int = LEAST, most: int = MOST) -> int:
    """(most − least + 1) · a + least − ½, rounded; half to even."""
    return min(max(round((most - least + 1) * action + least - 0.5), least), most)


def action_of(bits: int, least: int = LEAST, most: int = MOST) -> float:
    """In the middle of the actions that mean so many bits."""
    return (bits - least + 0.5) / (most - least + 1)


def fitted(bits: Sequence[int], sizes: Sequence[int], budget: float) -> list[int]:
    """One bit less, layer by layer from the last to the first and again, until Σ size · bits ≤ budget."""
    bits = list(bits)
    while sum(s * b for s, b in zip(sizes, bits)) > budget and max(bits) > LEAST:
        for i in reversed(range(len(bits))):
            bits[i] = max(bits[i] - 1, LEAST)
            if sum(s * b for s, b in zip(sizes, bits)) <= budget:
                break
    return bits


class BitWalk:
    """The ddpg.Walk of stage two."""

    def __init__(self, modules: Sequence[nn.Module], size: float, reward: Callable[[list[int]], float]):
        self.layers, self.tried, self.fixed = len(modules), reward, constant(modules)
        self.sizes = [tensor_at(m, "weight").numel() for m in modules]
        self.budget = size * WHOLE * sum(self.sizes)
        self.even = (min(max(math.ceil(size * WHOLE), LEAST), MOST) - LEAST + 0.5) / (MOST - LEAST + 1)

    def bits(self, actions: Sequence[float]) -> list[int]:
        return fitted([bits_of(a) for a in actions], self.sizes, self.budget)

    def state(self, actions: Sequence[float]) -> Tensor:
        now, total = len(actions), sum(self.sizes)
        saved = sum(s * (1 - bits_of(a) / WHOLE) for s, a in zip(self.sizes, actions)) / total
        return state(self.fixed[now], saved, sum(self.sizes[now + 1 :]) / total, actions)

    def allowed(self, actions: Sequence[float], action: float) -> float:
        return action

    def reward(self, actions: Sequence[float]) -> tuple[float, list[float]]:
        bits = self.bits(actions)
        return self.tried(bits), [action_of(b) for b in bits]


@dataclass(frozen=True)
class Numbers:
    episodes: int
    images: int  # validation images that reward an episode
    tuned: int  # training images that it trains on before
    size: float  # share of the f32 weights' size
    seed: int


class BitWidths(FakeQuantised):
    """Searches when its phase begins; what is trained in it is the quantised network."""

    def __init__(self, numbers: Numbers):
        self.numbers = numbers

    def begin(self, model: nn.Module) -> None:
        sample = self.sample
        inputs = quantise.calibrate(model, (x for x, _ in first(sample, CALIBRATED) if len(x) > 1))
        validation = list(first(held_out(sample), self.numbers.images))

        def grids(bits: Sequence[int]) -> dict[str, Grid]:
            return {path: Grid(b, *numbers) for b, (path, numbers) in zip(bits, inputs.items())}

        def tried(bits: Sequence[int]) -> float:
            trial = copy.deepcopy(model)
            Quantisers(grids(bits)).attach(trial)
            self._train(trial, sample)
            return GAIN * 100 * (accuracy(trial, validation) - before)

        before = accuracy(model, validation)
        walk = BitWalk([model.get_submodule(path) for path in inputs], self.numbers.size, tried)
        search = ddpg.Numbers(self.numbers.episodes, self.numbers.episodes // 30, decay=0.99, replay=128)
        with torch.random.fork_rng():
            torch.manual_seed(self.numbers.seed)  # dropout
            actions, _ = ddpg.search(walk, search, self.numbers.seed)
        found = rows(grids(walk.bits(actions)))
        self.install(grids_of(dict(zip(found, distributed.from_first(list(found.values()))))))

    @torch.enable_grad()
    def _train(self, model: nn.Module, sample: Sample) -> None:
        sgd = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        # what was dropped stays so
        left = {path: p.detach() != 0 for path, p in model.named_parameters() if p.ndim > 1}
        model.train()
        for x, y in first(sample, self.numbers.tuned):
            if len(x) > 1:  # batch norm over a single one is not defined
                sgd.zero_grad()
                F.cross_entropy(model(x), y).backward()
                sgd.step()
                surgery.zero(model, left)
