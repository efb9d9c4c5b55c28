"""Small networks of kinds that no package here has, as their papers draw them. Not a script itself."""

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Ronneberger et al. 2015, padded, with batch norms: (B, 3, H, W) -> (B, classes, H, W), sizes multiples of 16."""

    def __init__(self, width: int = 32, classes: int = 21):
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(twice(i, o) for i, o in zip([3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, stride=2) for o in widths[-2::-1])
        self.joined = nn.ModuleList(twice(2 * o, o) for o in widths[-2::-1])
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for i, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if i else x)
            passed.append(x)
        for up, block, beside in zip(self.up, self.joined, passed[-2::-1]):
            x = block(torch.cat([up(x), beside], 1))
        return self.classifier(x)


def twice(i: int, o: int) -> nn.Sequential:
    layers = [(nn.Conv2d(a, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for a in (i, o)]
    return nn.Sequential(*layers[0], *layers[1])


def super_resolution(scale: int = 3) -> nn.Module:
    """Shi et al. 2016, with torch's example's widths: (B, 1, H, W) -> (B, 1, scale H, scale W)."""
    widths = (1, 64, 64, 32, scale**2)
    layers: list[nn.Module] = []
    for i, o, k in zip(widths, widths[1:], (5, 3, 3, 3)):
        layers += [nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.PixelShuffle(scale))


def keypoints(count: int = 17) -> nn.Module:
    """Xiao et al. 2018 on a ResNet-18: (B, 3, H, W) -> heat maps (B, count, H / 4, W / 4)."""
    from torchvision.models import resnet18

    layers: list[nn.Module] = [*resnet18().children()][:-2]
    for i in (512, 256, 256):
        up = nn.ConvTranspose2d(i, 256, 4, stride=2, padding=1, bias=False)
        layers += [up, nn.BatchNorm2d(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(256, count, 1))


def audio(classes: int = 35) -> nn.Module:
    """M5 of Dai et al. 2017 on raw sound: (B, 1, samples) -> (B, classes)."""
    layers: list[nn.Module] = []
    for i, o, k, stride in ((1, 128, 80, 4), (128, 128, 3, 1), (128, 256, 3, 1), (256, 512, 3, 1)):
        layers += [nn.Conv1d(i, o, k, stride), nn.BatchNorm1d(o), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(512, classes))


class Heads(nn.Module):
    """A detector of torchvision up to its heads' raw outputs: (B, 3, H, W) -> offsets and scores of every anchor."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(x).values()))


class Detector(nn.Module):
    """All of it, with the non-maximum suppression: (1, 3, H, W) -> boxes, scores and labels of what it finds."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.detector(list(x))[0]
