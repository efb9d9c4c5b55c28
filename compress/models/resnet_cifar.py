"""ResNets for 32×32 images: 6n + 2 layers in three stages of 16, 32 and 64 channels.

Paper: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
Differs: none. Shortcuts are the paper's option A (no parameters): every second pixel, new channels zero. The new
channels are split evenly before and after the old ones, as in the usual public checkpoints. With ``projection`` they
are its option B where the shape changes: a 1×1 convolution at stride 2 and batch norm, as in ResRep and C-SGD.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.errors import BadInput


class PadChannels(nn.Module):
    """(B, C, H, W) -> (B, before + C + after, H, W), zero in the new channels."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.projection = self.pad = None
        if stride == 1 and inputs == outputs:
            return
        if projection:
            self.projection = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )
        else:
            before = (outputs - inputs) // 2
            self.pad = PadChannels(before, outputs - inputs - before)

    def shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(x)
        if self.pad is not None:
            return self.pad(x[:, :, :: self.stride, :: self.stride])
        return x

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """(B, 3, 32, 32) images -> (B, num_classes) logits; ``depth`` = 6n + 2. Other image sizes work too."""

    def __init__(self, depth: int, num_classes: int = 10, projection: bool = False):
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise BadInput(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...), got depth {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, n, 1, projection)
        self.layer2 = self._stage(16, 32, n, 2, projection)
        self.layer3 = self._stage(32, 64, n, 2, projection)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int, projection: bool) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride, projection)
        return nn.Sequential(first, *[BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1)  # (B, 64, 1, 1)
        return self.linear(torch.flatten(x, 1))
