"""VGG-16 with batch norm for 32×32 images: thirteen convolutions and one linear layer.

Paper: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556,
table 1, column D.
Differs: as usual on CIFAR, and as in RNI (arXiv 2204.06404): batch norm after every convolution, no fifth
max-pooling, the mean over what is left, and one linear layer for three. Names are those of torchvision's vgg16_bn.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# output channels of the convolutions; max-pooling between the stages
STAGES = [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)]


class CifarVGG16(nn.Module):
    """(B, 3, 32, 32) images -> (B, num_classes) logits. Other sizes from 16×16 work too."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for outputs in stage:
                layers += [nn.Conv2d(channels, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 512, 2, 2)
        x = F.adaptive_avg_pool2d(x, 1)  # (B, 512, 1, 1)
        return self.classifier(torch.flatten(x, 1))
