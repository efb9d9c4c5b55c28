"""Network slimming: an L1 penalty on batch norm scales, the smallest of all layers cut.

Paper: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, arXiv 1708.06519
Code:  github.com/Eric-mingjie/network-slimming
Differs: exactly as many channels go as were asked for (the authors' threshold takes one more), and every layer keeps
    --min_width. γ starts where the network has it: at 1 from scratch, where the authors' starts at 0.5 (`train` of the
    notebook's functions does, compress/compat/rni.py). Before activation (DenseNet) a channel is cut for all its
    readers or none; the authors select per reader.
"""

from torch import Tensor, nn

from kerf.compress.pruning import criteria, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Pressure, Task


class ScalePenalty(Pressure):
    """loss + s Σ |γ| over every batch norm."""

    def __init__(self, weight: float):
        self.weight = weight

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        loss, logits = task(model, x, y)
        scales = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
        return loss + self.weight * sum(scale.abs().sum() for scale in scales), logits


def slimming(settings: Settings, *, reg_weight: float = 1e-4) -> Recipe:
    """Sparse training, then the channels with the smallest |γ| go, then fine-tuning. reg_weight: s."""
    scope = settings.pooled
    return Recipe(
        settings.channels(scaled=True),
        criteria.bn_scale,
        scope,
        schedules.press_then_prune,
        pressure=ScalePenalty(reg_weight),
    )
