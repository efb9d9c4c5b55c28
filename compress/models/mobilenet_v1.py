"""MobileNet-V1.

Paper: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
arXiv 1704.04861, table 1.
Differs: none (ReLU, no dropout).
"""

import torch
from torch import Tensor, nn

# (output channels, stride) of the thirteen depthwise-separable blocks.
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class MobileNetV1(nn.Module):
    """(B, 3, H, W) images -> (B, num_classes) logits."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        layers = [conv_bn_relu(3, 32, 3, stride=2)]
        channels = 32
        for outputs, stride in BLOCKS:
            depthwise = conv_bn_relu(channels, channels, 3, stride, groups=channels)
            layers.append(nn.Sequential(*depthwise, *conv_bn_relu(channels, outputs, 1)))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (B, 1024, 1, 1)
        return self.classifier(torch.flatten(x, 1))
