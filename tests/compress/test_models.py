"""Architectures: table, shapes, resolution, pretrained weights."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.models as tv
from torch import nn

from compress.models import MODELS, create

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("size", [32, 96])
def test_logits_and_gradients(arch, size):
    model = create(arch, num_classes=7, image_size=size)
    out = model(torch.randn(2, 3, size, size))
    assert out.shape == (2, 7)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("arch", MODELS)
def test_small_images_keep_resolution(arch):
    """The last convolution sees 4×4 positions (8×8 for CIFAR ResNets), where the ImageNet form would leave 1×1."""
    shapes = []
    model = create(arch, 10, 32).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: shapes.append(out.shape[2:]))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    spatial = [s for s in shapes if s != (1, 1)]  # without squeeze-excite
    assert spatial[-1] == ((8, 8) if arch in ("resnet20", "resnet56") else (4, 4))
    assert spatial[0] == (32, 32)


@pytest.mark.parametrize(("arch", "params"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_cifar_resnets_have_no_parameters_in_shortcuts(arch, params):
    model = create(arch, 10, 32)
    assert sum(p.numel() for p in model.parameters()) == params
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}
    assert not any("shortcut" in name or "downsample" in name for name in state)


@pytest.mark.parametrize("arch", ["resnet20", "resnet56"])
def test_trained_weights_load_strictly(arch):
    file = DATA / f"{arch}-cifar10jpeg.safetensors"
    if not file.exists():
        pytest.skip(f"no trained weights at {file.name}")
    from safetensors.torch import load_file

    create(arch, 10, 32).load_state_dict(load_file(file), strict=True)


def test_option_a_shortcut():
    """Every second pixel, old channels in the middle, zeros on both sides."""
    block = create("resnet20", 10, 32).layer2[0]
    x = torch.randn(2, 16, 8, 8)
    y = block.shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_unknown_architecture_is_refused_naming_the_known():
    with pytest.raises(ValueError, match=r"unknown architecture 'vgg99'.*resnet56"):
        create("vgg99", 10, 32)


@pytest.mark.parametrize(("classes", "size"), [(0, 32), (10, 0), (-1, 32)])
def test_impossible_sizes_are_refused(classes, size):
    with pytest.raises(ValueError, match="must be positive"):
        create("resnet20", classes, size)


def test_no_pretrained_weights_is_said():
    with pytest.raises(ValueError, match=r"no weights for mobilenet_v1.*resnet50"):
        create("mobilenet_v1", 1000, 224, pretrained=True)


def test_failed_download_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise URLError("no route\nto host")

    monkeypatch.setattr(tv.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(ValueError, match="weights of resnet18 could not be fetched") as caught:
        create("resnet18", 1000, 224, pretrained=True)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_fill_what_fits(monkeypatch):
    donor = tv.resnet18(weights=None).state_dict()
    monkeypatch.setattr(tv.ResNet18_Weights, "get_state_dict", lambda *_, **__: donor)
    whole = create("resnet18", 1000, 224, pretrained=True).state_dict()
    assert all(torch.equal(whole[name], donor[name]) for name in donor)
    small = create("resnet18", 10, 32, pretrained=True).state_dict()
    assert torch.equal(small["layer4.1.conv2.weight"], donor["layer4.1.conv2.weight"])
    assert small["conv1.weight"].shape == (64, 3, 3, 3)
    assert small["fc.weight"].shape == (10, 512)
