"""A network with what trained ones have: a strided shortcut, batch norms that are not fresh."""

import torch
import torch.nn.functional as F
from torch import nn


class OptionA(nn.Module):
    """A CIFAR ResNet's transition: two convolutions beside a strided slice with zero-padded channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def randomised(model: nn.Module) -> nn.Module:
    """Batch norms with the signs, shifts and scales of a trained network, so that a wrong fold shows."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.weight.data.uniform_(-1.5, 1.5, generator=generator)
            layer.bias.data.normal_(generator=generator)
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.2, 3.0, generator=generator)
    return model
