"""Learning rate by epoch and step. No model, no optimiser.

Four policies and the warm-up are those of the 1xN authors' code (github.com/lmbxmu/1xN). With e the epoch from 0,
E epochs, W warm-up epochs, L steps an epoch:

    cos    lr = lr0/2 * (1 + cos(pi (e - W) / (E - W)))
    step   lr = lr0 * gamma^(e // adjust), once more by gamma from epoch 80 on; or by gamma at each given epoch
    exp    lr = lr0 * 0.96^e
    fixed  lr = lr0

    one_cycle  up along a cosine from lr0/10 to lr0 in a tenth of all steps, then down to lr0/1000

and for e < W all are multiplied by (1 + step + e L) / (W L). Differs: W is 5 there whatever the flag
says; `cos_step` is ours, the cosine followed step by step down to zero, for runs of few epochs, and `one_cycle` is
Smith and Topin's (arXiv 1708.07120), with the numbers of KESI (github.com/lehduong/kesi). `triangle` is the gate
decorator's: from lr0/10 up to lr0 in half of all steps, and down again (github.com/youzhonghui/gate-decorator-pruning).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from kerf.errors import BadInput

START, END, RISE = 1 / 10, 1 / 1000, 0.1  # of one_cycle: shares of the highest rate, share of the steps


@dataclass(frozen=True)
class LearningRate:
    base: float = 0.01
    epochs: int = 180
    warmup: int = 5
    policy: str = "cos"
    adjust: int = 30
    gamma: float = 0.1
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise BadInput(f"unknown learning rate policy {self.policy!r}: expected one of {', '.join(POLICIES)}")
        if self.warmup < 0 or self.adjust < 1 or not self.base > 0:
            raise BadInput(
                f"learning rate {self.base}, warm-up {self.warmup}, adjust {self.adjust}: expected > 0, >= 0 and >= 1"
            )

    def over(self, epochs: int) -> "LearningRate":
        """The same for a phase of `epochs`. Warm-up takes at most a quarter of it, so that short phases still train."""
        return replace(self, epochs=epochs, warmup=min(self.warmup, epochs // 4))

    def __call__(self, epoch: int, step: int, steps: int) -> float:
        rate = self.base * POLICIES[self.policy](self, epoch, (step + 1) / steps)
        if epoch < self.warmup:
            rate *= (1 + step + epoch * steps) / (self.warmup * steps)
        return rate


def cosine(lr: LearningRate, epoch: int, _: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * (epoch - lr.warmup) / (lr.epochs - lr.warmup)))


def cosine_by_step(lr: LearningRate, epoch: int, done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * max(0.0, epoch + done - lr.warmup) / (lr.epochs - lr.warmup)))


def one_cycle(lr: LearningRate, epoch: int, done: float) -> float:
    progress = (epoch + done) / lr.epochs
    if progress <= RISE:
        return 1 + (START - 1) * 0.5 * (1 + math.cos(math.pi * progress / RISE))
    return END + (1 - END) * 0.5 * (1 + math.cos(math.pi * (progress - RISE) / (1 - RISE)))


def triangle(lr: LearningRate, epoch: int, done: float) -> float:
    return START + (1 - START) * (1 - abs(2 * (epoch + done) / lr.epochs - 1))


def stepped(lr: LearningRate, epoch: int, _: float) -> float:
    if lr.milestones:
        return lr.gamma ** sum(epoch >= milestone for milestone in lr.milestones)
    return lr.gamma ** (epoch // lr.adjust + (epoch >= 80))


def exponential(_: LearningRate, epoch: int, __: float) -> float:
    return 0.96**epoch


def fixed(_: LearningRate, __: int, ___: float) -> float:
    return 1.0


POLICIES: dict[str, Callable[[LearningRate, int, float], float]] = {
    "cos": cosine,
    "cos_step": cosine_by_step,
    "one_cycle": one_cycle,
    "triangle": triangle,
    "step": stepped,
    "exp": exponential,
    "fixed": fixed,
}
