"""The table of architectures. Plain modules: nothing here knows about pruning."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast
from urllib.error import URLError

import torchvision.models as tv
from torch import nn

from kerf.compress.models.densenet_cifar import DenseNet40
from kerf.compress.models.mobilenet_v1 import MobileNetV1
from kerf.compress.models.resnet_cifar import CifarResNet
from kerf.compress.models.vgg_cifar import CifarVGG16
from kerf.errors import BadInput

SMALL_IMAGE = 64  # up to this many pixels a side, a network keeps its resolution longer


def _mobilenet_at_small_resolution(model: nn.Module) -> nn.Module:
    """The first two strided convolutions run at stride 1: 32×32 pixels end as 4×4 instead of 1×1.

    Parameters keep their names and shapes, so ImageNet weights still load.
    """
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for conv in strided[:2]:
        conv.stride = (1, 1)
    return model


def _resnet_at_small_resolution(model: nn.Module) -> nn.Module:
    """He et al.'s CIFAR stem: 3×3 at stride 1 for 7×7 at stride 2, and no max-pooling."""
    model.conv1 = nn.Conv2d(3, cast(nn.Conv2d, model.conv1).out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _unchanged(model: nn.Module) -> nn.Module:
    return model


class Architecture(NamedTuple):
    """One row of the table: calling it builds the ImageNet form."""

    build: Callable[..., nn.Module]
    at_small_resolution: Callable[[nn.Module], nn.Module]
    weights: tv.WeightsEnum | None  # torchvision's ImageNet weights

    def __call__(self, num_classes: int = 1000) -> nn.Module:
        return self.build(num_classes=num_classes)


MODELS: dict[str, Architecture] = {
    "mobilenet_v1": Architecture(MobileNetV1, _mobilenet_at_small_resolution, None),
    "mobilenet_v2": Architecture(
        tv.mobilenet_v2, _mobilenet_at_small_resolution, tv.MobileNet_V2_Weights.IMAGENET1K_V1
    ),
    "mobilenet_v2_x0_5": Architecture(partial(tv.mobilenet_v2, width_mult=0.5), _mobilenet_at_small_resolution, None),
    # in which DMCP searches for MobileNet-V2's widths
    "mobilenet_v2_x1_5": Architecture(partial(tv.mobilenet_v2, width_mult=1.5), _mobilenet_at_small_resolution, None),
    "mobilenet_v3_small": Architecture(
        tv.mobilenet_v3_small, _mobilenet_at_small_resolution, tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    ),
    "mobilenet_v3_large": Architecture(
        tv.mobilenet_v3_large, _mobilenet_at_small_resolution, tv.MobileNet_V3_Large_Weights.IMAGENET1K_V1
    ),
    "resnet18": Architecture(tv.resnet18, _resnet_at_small_resolution, tv.ResNet18_Weights.IMAGENET1K_V1),
    "resnet50": Architecture(tv.resnet50, _resnet_at_small_resolution, tv.ResNet50_Weights.IMAGENET1K_V1),
    "resnet20": Architecture(partial(CifarResNet, 20), _unchanged, None),
    "resnet56": Architecture(partial(CifarResNet, 56), _unchanged, None),
    "resnet110": Architecture(partial(CifarResNet, 110), _unchanged, None),
    "resnet20_projection": Architecture(partial(CifarResNet, 20, projection=True), _unchanged, None),
    "resnet56_projection": Architecture(partial(CifarResNet, 56, projection=True), _unchanged, None),
    "resnet110_projection": Architecture(partial(CifarResNet, 110, projection=True), _unchanged, None),
    "vgg16": Architecture(CifarVGG16, _unchanged, None),
    "densenet40": Architecture(DenseNet40, _unchanged, None),
}


def create(arch: str, num_classes: int, image_size: int, pretrained: bool = False) -> nn.Module:
    """Build a network for (B, 3, image_size, image_size) images and ``num_classes`` logits.

    Up to 64×64 pixels the stem keeps the resolution; above, it is the ImageNet form. ``pretrained`` starts from
    torchvision's ImageNet weights; tensors whose shape differs (another number of classes, a 3×3 stem) start random.
    Raises ValueError for an unknown architecture, for a size or a number of classes below 1, and for weights that
    do not exist or cannot be fetched.
    """
    if arch not in MODELS:
        raise BadInput(f"unknown architecture {arch!r}; known: {', '.join(MODELS)}")
    if num_classes < 1 or image_size < 1:
        raise BadInput(f"{arch}: num_classes and image_size must be positive, got {num_classes} and {image_size}")
    row = MODELS[arch]
    model = row(num_classes)
    if image_size <= SMALL_IMAGE:
        model = row.at_small_resolution(model)
    if pretrained:
        _load_imagenet(model, arch)
    return model


def _load_imagenet(model: nn.Module, arch: str) -> None:
    weights = MODELS[arch].weights
    if weights is None:
        having = ", ".join(name for name, row in MODELS.items() if row.weights)
        raise BadInput(f"torchvision has no weights for {arch}; it has them for {having}")
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"the ImageNet weights of {arch} could not be fetched ({reason}); pass a file") from error
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    fitting = {name: tensor for name, tensor in state.items() if tensor.shape == shapes.get(name)}
    model.load_state_dict(fitting, strict=False)
