"""Receding neuron importances: batch norm scales bounded by a sigmoid, and a penalty that only unimportant ones feel.

Paper: Suteu and Guo, "Receding Neuron Importances for Structured Pruning", 2022, arXiv 2204.06404
Code:  the authors' repository of the same name
Differs: weights that are given start with σ(w) = γ, clipped to [0.02, 0.98], and lose β: the outputs change, and the
    training under the penalty has to make up for it (the authors always train from scratch, with w from N(0, 1)).
    Exactly as many channels go as were asked for. At the end γ = σ(w), β = 0: plain batch norms. Momentum is Nesterov's
    and weight decay 1e-4 only where flags, or --recipe published, say so; both are theirs. b is 3, as in their README;
    their results on ResNet-56 have b = 0, those on VGG-16 a penalty of 1e-3.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.methods.own_norms import momentum_of
from kerf.compress.network.grafts import affine
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import ParameterGroup, Plan, Pressure, Task
from kerf.compress.units.channels import ChannelUnits

LEAST = 3  # channels that every layer keeps


class SigmoidBatchNorm2d(nn.BatchNorm2d):
    """y = σ(w) (x − μ) / √(v + ε). The importance σ(w) is in (0, 1); there is no shift."""

    def forward(self, x: Tensor) -> Tensor:
        momentum = momentum_of(self)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight.sigmoid(), None, self.training, momentum, self.eps
        )


def penalty(w: Tensor, b: float) -> Tensor:
    """Σ s (1 − ln s), s = σ(w + b). Its slope −s (1 − s) ln s is largest at w + b = −1.177, and 0 far from there."""
    s = torch.sigmoid(w + b)
    return (s * (1 - F.logsigmoid(w + b))).sum()


class Receding(Pressure):
    def __init__(self, reg_weight: float, b: float, seed: int = 0):
        self.reg_weight, self.b, self.seed = reg_weight, b, seed

    @torch.no_grad()
    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        random = torch.Generator().manual_seed(self.seed)
        for norm in affine(model, nn.BatchNorm2d):
            fresh = bool((norm.weight == 1).all() and (norm.bias == 0).all())
            start = torch.randn(norm.weight.shape, generator=random)
            norm.weight.copy_(start if fresh else norm.weight.abs().clamp(0.02, 0.98).logit())
            norm.bias.zero_()
            norm.__class__ = SigmoidBatchNorm2d  # the same tensors under the same names
        self.attached = True

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, SigmoidBatchNorm2d)]
        return [ParameterGroup(names, scale=10.0, weight_decay=0.0)]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        loss, logits = task(model, x, y)
        w = torch.cat([norm.weight for norm in affine(model, SigmoidBatchNorm2d)])
        return loss + self.reg_weight * penalty(w, self.b), logits

    def release(self, model: nn.Module) -> None:
        """Nothing: the sigmoid stays while the network is fine-tuned."""

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for norm in affine(model, SigmoidBatchNorm2d):
            norm.weight.copy_(norm.weight.sigmoid())
            norm.bias.zero_()
            norm.__class__ = nn.BatchNorm2d
        self.attached = False

    def score(self, units: ChannelUnits) -> Tensor:
        scales = units.scales()
        return (scales.sigmoid() if self.attached else scales.abs()).mean(0)


def rni(settings: Settings, *, reg_weight: float = 1e-4, b: float = 3.0) -> Recipe:
    """Sparse training, then the least important channels go, then fine-tuning. b shifts the window of the penalty."""
    receding = Receding(reg_weight, b, settings.seed)
    scope = replace(settings, min_width=max(LEAST, settings.min_width)).pooled
    return Recipe(
        settings.channels(scaled=True),
        receding.score,
        scope,
        schedules.press_then_prune,
        pressure=receding,
    )
