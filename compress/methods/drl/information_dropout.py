"""Information dropout of weights: noise that learns how loud it may be; what is drowned by it is dropped.

Source: Achille and Soatto, "Information Dropout", TPAMI 2018, arXiv 1611.01353, section 4, for activations: noise ε
with ln ε ~ N(0, α²), a log-uniform prior, whose divergence is −ln α up to a constant
(github.com/ucla-vision/information-dropout). Of weights, and pruned by their signal-to-noise ratio, as in Molchanov et
al., "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017, arXiv 1701.05369.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training import distributed
from kerf.compress.training.masking import Shadows
from kerf.compress.training.pressure import Moments, ParameterGroup, Plan, Pressure, Task
from kerf.compress.units.weights import prunable

LEAST = 1e-3  # of α
SPAN = 1.5  # α lies in (LEAST, LEAST + SPAN), which has to hold LOUDEST
START = 0.1  # α of a trained network's weights: a tenth of each is noise
LOUDEST = math.sqrt(math.log(2))  # α of a signal-to-noise ratio of 1


def snr(alpha: Tensor) -> Tensor:
    """Mean over standard deviation of ε: 1 / √(e^(α²) − 1)."""
    return alpha.square().expm1().rsqrt()


def divergence(alpha: Tensor, most: float) -> Tensor:
    """KL of ε from the log-uniform prior, −ln (α / α_max): 0 at ``most``, the loudest noise."""
    return -(alpha / most).log()


class InformationDropout(Pressure):
    """Weights are multiplied by ε, drawn anew in every step; α of each is learned with the loss CE + b Σ KL / N.

    One α for a weight, or where ``kernels`` for a kernel W[o, c]. N is the number of training images: with b = 1 the
    loss is the variational bound. Evaluation is without noise.
    """

    def __init__(self, kernels: bool, full: bool, penalty: float, rate: float):
        self.kernels, self.full, self.penalty, self.rate = kernels, full, penalty, rate
        self.shadows = Shadows(self._value)
        self.masks: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[Any], plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.index = {path: i for i, path in enumerate(prunable(model, graph, self.full))}
        quiet = math.log((START - LEAST) / (SPAN - START + LEAST))  # the logit of START
        self.loudness = nn.ParameterList(
            torch.full(self._shape(w := model.get_parameter(path)), quiet, device=w.device) for path in self.index
        )
        self.moments = Moments(dict(self.loudness.named_parameters()))
        model.add_module("information_dropout", self.loudness)
        self.shadows.attach(model, self.index)
        self.attached = True

    def _shape(self, weight: Tensor) -> tuple[int, ...]:
        return (*weight.shape[:2], *(1 if self.kernels else size for size in weight.shape[2:]))

    def alpha(self, path: str) -> Tensor:
        return LEAST + SPAN * self.loudness[self.index[path]].sigmoid()

    def _value(self, path: str, weight: Tensor) -> Tensor:
        if not self.model.training:
            return weight
        alpha = self.alpha(path)
        return weight * (alpha * torch.randn_like(alpha)).exp().to(weight.dtype)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"information_dropout.{i}" for i in range(len(self.loudness))]
        return [ParameterGroup(names, self.rate / self.plan.peak, momentum=0.0, nesterov=False, weight_decay=0.0)]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        loss, logits = task(model, x, y)
        images = self.plan.each * len(x) * distributed.world()
        apart = torch.stack([divergence(self.alpha(path), LEAST + SPAN).sum() for path in self.index]).sum()
        return loss + self.penalty * apart / images, logits

    def edit_gradients(self, model: nn.Module, step: int) -> None:
        for name, loudness in self.loudness.named_parameters():
            self.moments.direct(name, loudness, step)

    @torch.no_grad()
    def heard(self, path: str) -> Tensor:
        """bool, of the weight's shape: False where noise is louder than the weight. Of each layer something stays."""
        alpha = self.alpha(path)
        keep = (snr(alpha) >= 1) | (alpha == alpha.min())
        return keep.expand(self.model.get_parameter(path).shape).contiguous()

    def fold(self, model: nn.Module) -> None:
        """Takes the noise out, and zeroes what it drowned; outputs change by that."""
        if self.attached:
            self.masks = {path: self.heard(path) for path in self.index}
            self.shadows.detach()
            del model.information_dropout
            surgery.zero(model, self.masks)
        self.attached = False

    def zeros(self) -> dict[str, Tensor]:
        return self.masks

    def state(self) -> dict[str, Tensor]:
        return self.moments.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.moments.restore(state)

    def report(self, model: nn.Module) -> str:
        heard = [self.heard(path) for path in self.index]
        kept, total = sum(int(k.sum()) for k in heard), sum(k.numel() for k in heard)
        return f"{total - kept} of {total} weights have a signal-to-noise ratio below 1"
