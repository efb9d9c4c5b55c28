"""What an agent is told about a layer: the state of AMC and HAQ.

Source: He et al., ECCV 2018, arXiv 1802.03494, section 3.1; Wang et al., CVPR 2019, arXiv 1811.08886, section 3.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def constant(layers: Sequence[nn.Module]) -> Tensor:
    """(layers, 7) in [0, 1]: index, kind, inputs, outputs, stride, kernel and weights, each from least to most."""
    rows = torch.tensor([[float(i), *_numbers(layer)] for i, layer in enumerate(layers)])
    least, most = rows.aminmax(dim=0)
    return (rows - least) / torch.where(most > least, most - least, 1.0)


def _numbers(layer: nn.Module) -> tuple[float, ...]:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return 2.0, inputs, outputs, 1.0, 1.0, layer.weight.numel()
    inputs *= layer.groups
    return float(layer.groups > 1), inputs, outputs, layer.stride[0], layer.kernel_size[0], layer.weight.numel()


def state(fixed: Tensor, saved: float, later: float, actions: Sequence[float]) -> Tensor:
    """(10,): a row of `constant`, the shares of the cost saved so far and spent in later layers, the action before."""
    return torch.cat([fixed, torch.tensor([saved, later, actions[-1] if actions else 1.0])])
