"""DenseNet-40 for 32×32 images: three dense blocks of twelve layers, growth 12, no bottlenecks.

Paper: Huang et al., "Densely Connected Convolutional Networks", arXiv 1608.06993, section 3 (L = 40, k = 12).
Differs: none (no dropout, which the paper uses without data augmentation only). C-SGD's TensorFlow network has one
more ReLU, after the convolution of a transition; it is left out here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM, GROWTH, LAYERS = 16, 12, 12


class DenseLayer(nn.Module):
    """(B, inputs, H, W) -> (B, inputs + growth, H, W), the input first."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.bn(x)))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    """(B, channels, H, W) -> (B, channels, H / 2, W / 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet40(nn.Module):
    """(B, 3, 32, 32) images -> (B, num_classes) logits. Other sizes from 4×4 work too."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        first, second, third = (STEM + i * LAYERS * GROWTH for i in range(3))  # 16, 160, 304
        self.conv = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.block1 = self._block(first)
        self.transition1 = Transition(second)
        self.block2 = self._block(second)
        self.transition2 = Transition(third)
        self.block3 = self._block(third)
        channels = third + LAYERS * GROWTH
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.linear.bias)

    @staticmethod
    def _block(inputs: int) -> nn.Sequential:
        return nn.Sequential(*[DenseLayer(inputs + i * GROWTH, GROWTH) for i in range(LAYERS)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.conv(x)))  # (B, 160, 16, 16)
        x = self.transition2(self.block2(x))  # (B, 304, 8, 8)
        x = F.relu(self.bn(self.block3(x)))  # (B, 448, 8, 8)
        x = F.adaptive_avg_pool2d(x, 1)  # (B, 448, 1, 1)
        return self.linear(torch.flatten(x, 1))
