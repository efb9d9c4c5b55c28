"""PruneNet-style: channels go that carry the least of what the layers behind them see vary, over all layers.

Paper: Khetan and Karnin, "PruneNet: Channel Pruning via Global Importance", 2020, arXiv 2005.11282 (the abstract and
    two notes of readers were read)
Code:  none known
Differs: filled in are the score (variance of what is read, times the reader's squared weights, as a share of the
    layer), the penalty on its square root, λ, and one epoch of it at a rate of 1e-3; the paper says that a light
    optimisation on data with a new regularisation finds the widths, and that channels are ranked over all layers. The
    weights that are fine-tuned are those from before that epoch. Behind pooling or a concatenation the variance is that
    of what is read there. Of several processes each takes the variances of its own part of a batch. A layer's best
    tenth goes last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.surgery import tensor_at
from kerf.compress.network.watching import hooked
from kerf.compress.pruning import schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.training.sample import Sample, first
from kerf.compress.units.channels import ChannelUnits, by_channel

LAST = 0.1  # the best tenth of a layer goes last
TINY = 1e-12  # a share's square root has no gradient at zero

T = TypeVar("T")


def carried(weight: Tensor, x: Tensor) -> Tensor:
    """(I / groups,): v_c · Σ W[o, c]², of what a layer reads, x (B, I, …), and its weight (O, I / groups, …).

    The variance of its outputs, summed, where inputs do not correlate and kernels are 1×1. Equal columns of the groups
    of a convolution are one.
    """
    v = x.float().transpose(0, 1).flatten(1).var(1, correction=0)
    groups = len(v) // weight.shape[1]
    squares = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel()).square().sum((1, 3))
    return (v.view(groups, -1) * squares).sum(0)


def contributions(model: nn.Module, units: Sequence[ChannelUnits], show: Callable[[], T]) -> tuple[T, list[Tensor]]:
    """What `show`, which runs the model, returns, and I (count,) of each unit's channels then, with gradients.

    Raises ValueError for channels that no layer reads.
    """
    places = [u.readers() for u in units]
    columns: dict[str, Tensor] = {}

    def see(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = carried(tensor_at(module, "weight"), args[0])
        columns[path] = columns[path] + found if path in columns else found

    paths = dict.fromkeys(path for found in places for path, _ in found)
    with hooked(
        model.get_submodule(path.rpartition(".")[0]).register_forward_pre_hook(partial(see, path)) for path in paths
    ):
        shown = show()
    return shown, [
        torch.stack([by_channel(columns[place[0]], u.channels, place).sum(1) for place in found]).sum(0)
        for u, found in zip(units, places)
    ]


def shares(contributed: Sequence[Tensor]) -> list[Tensor]:
    """Ī_c = I_c / Σ I, layer by layer."""
    return [i / i.sum().clamp(min=1e-30) for i in contributed]


class Importance(Pressure):
    """loss + λ Σ √Ī_c over the channels of all layers: whatever the scale of weights, few channels carry much."""

    def __init__(self, penalty: float, rate: float, images: int, restore: bool):
        self.penalty, self.rate, self.images, self.gives_back = penalty, rate, images, restore

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.scale = units, min(1.0, self.rate / plan.peak)
        self.given = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.attached = True

    def rate_factor(self, step: int) -> float:
        return self.scale

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        (loss, logits), contributed = contributions(model, self.units, lambda: task(model, x, y))
        roots = [s.clamp(min=TINY).sqrt().sum() for s in shares(contributed)]
        return loss + self.penalty * torch.stack(roots).sum(), logits

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], sample: Sample) -> None:
        """Means over `images`, of the network as it is after the penalty."""
        sums = [torch.zeros(u.count, dtype=torch.double, device=u.sizes.device) for u in units]
        for x, _ in first(sample, self.images):
            _, found = contributions(model, units, partial(model, x))
            sums = [total + len(x) * i.double() for total, i in zip(sums, found)]
        self.shares = dict(zip([u.path for u in units], shares(sums)))

    def score(self, unit: ChannelUnits) -> Tensor:
        score = self.shares[unit.path].clone()
        score[scopes.best(score, max(1, int(LAST * unit.count))).to(score.device)] = torch.inf
        return score

    def release(self, model: nn.Module) -> None:
        """The weights from before: what was trained under the penalty has said how wide layers have to be."""
        if self.gives_back:
            model.load_state_dict(self.given)
        self.fold(model)

    def state(self) -> dict[str, Tensor]:
        return self.given

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, value in self.given.items():
            value.copy_(state[name])


def prunenet(
    settings: Settings, *, penalty: float = 1e-2, rate: float = 1e-3, images: int = 3200, restore: int = 1
) -> Recipe:
    """An epoch of training says which channels carry little; those of all layers go; then fine-tuning.

    penalty: λ; rate: highest learning rate of that epoch; images: training images that channels are scored on; restore:
    1 fine-tunes the weights from before the epoch, 0 those after it.
    """
    importance = Importance(penalty, rate, images, bool(restore))
    return Recipe(
        settings.channels(),
        importance.score,
        settings.pooled,
        partial(schedules.press_trained, most=1),
        pressure=importance,
        observe=importance.observe,
    )
