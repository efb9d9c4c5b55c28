"""Architectures: table, shapes, resolution, pretrained weights."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.models as tv
from torch import nn

from kerf.compress.models import MODELS, create
from tests.helpers.archs import archs

DATA = Path(__file__).parents[4] / "shared" / "data"
CIFAR_RESNETS = [arch for arch in MODELS if arch.startswith(("resnet20", "resnet56", "resnet110"))]
CIFAR_POSITIONS = {"vgg16": (2, 2), "densenet40": (8, 8), **dict.fromkeys(CIFAR_RESNETS, (8, 8))}


@pytest.mark.parametrize("arch", archs())
@pytest.mark.parametrize("size", [32, 96])
def test_logits_and_gradients(arch, size):
    model = create(arch, num_classes=7, image_size=size)
    out = model(torch.randn(2, 3, size, size))
    assert out.shape == (2, 7)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("arch", MODELS)
def test_small_images_keep_resolution(arch):
    """The last convolution sees 4×4 positions (CIFAR networks: their own), where the ImageNet form would leave 1×1."""
    shapes = []
    model = create(arch, 10, 32).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: shapes.append(out.shape[2:]))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    spatial = [s for s in shapes if s != (1, 1)]  # without squeeze-excite
    assert spatial[-1] == CIFAR_POSITIONS.get(arch, (4, 4))
    assert spatial[0] == (32, 32)


@pytest.mark.parametrize(("arch", "params"), [("resnet20", 269_722), ("resnet56", 853_018), ("resnet110", 1_727_962)])
def test_cifar_resnets_have_no_parameters_in_shortcuts(arch, params):
    model = create(arch, 10, 32)
    assert sum(p.numel() for p in model.parameters()) == params
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}
    assert {name.split(".")[2] for name in state if name.startswith("layer")} == {"conv1", "bn1", "conv2", "bn2"}


@pytest.mark.parametrize("arch", [arch for arch in CIFAR_RESNETS if not arch.endswith("_projection")])
def test_projections_only_where_the_shape_changes(arch):
    plain, projected = create(arch, 10, 32).state_dict(), create(f"{arch}_projection", 10, 32).state_dict()
    added = {name: tuple(projected[name].shape) for name in projected if name not in plain}
    assert {name: shape for name, shape in added.items() if len(shape) == 4} == {
        "layer2.0.projection.0.weight": (32, 16, 1, 1),
        "layer3.0.projection.0.weight": (64, 32, 1, 1),
    }
    assert {name.rpartition(".")[0] for name in added} == {f"layer{k}.0.projection.{i}" for k in (2, 3) for i in (0, 1)}
    assert [name for name in projected if name in plain] == list(plain)


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


def test_option_a_widths_are_those_of_the_padding_alone():
    """Channels come and go by two integers, which no state dict holds."""
    block = create("resnet20", 10, 32).layer2[0]
    block.pad.before, block.pad.after = 1, 3
    x = torch.randn(2, 5, 8, 8)
    y = block.shortcut(x)
    assert y.shape == (2, 9, 4, 4)
    assert torch.equal(y[:, 1:6], x[:, :, ::2, ::2])
    assert not y[:, :1].any()
    assert not y[:, 6:].any()
    assert not block.pad.state_dict()


def test_option_b_shortcut():
    """A 1×1 convolution of every second pixel, normalised."""
    block = create("resnet20_projection", 10, 32).layer2[0].eval()
    x = torch.randn(2, 16, 8, 8)
    y = block.shortcut(x)
    weight = block.projection[0].weight[:, :, 0, 0]
    expected = torch.einsum("oi,bihw->bohw", weight, x[:, :, ::2, ::2]) / (1 + block.projection[1].eps) ** 0.5
    torch.testing.assert_close(y, expected)


def test_vgg16_is_torchvisions_without_the_last_pooling():
    ours = create("vgg16", 10, 32).eval()
    theirs = tv.vgg.make_layers(tv.vgg.cfgs["D"], batch_norm=True)[:-1].eval()
    theirs.load_state_dict(ours.features.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    features = theirs(x)
    assert features.shape == (2, 512, 2, 2)
    assert torch.equal(ours(x), ours.classifier(features.mean((2, 3))))


def test_vgg16_starts_as_specified():
    model = create("vgg16", 100, 32)
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    for conv in convolutions:
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.1)
        assert not conv.bias.any()
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not model.classifier.bias.any()


def test_densenet40_layers():
    """39 convolutions before the classifier, every one but the first behind a batch norm of its own input."""
    model = create("densenet40", 10, 32)
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16] + 12 * [12] + [160] + 12 * [12] + [304] + 12 * [12]
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [*range(16, 161, 12), *range(160, 305, 12), *range(304, 449, 12)]
    layer = model.block2[3].eval()
    x = torch.randn(2, 196, 4, 4)
    y = layer(x)
    assert torch.equal(y[:, :196], x)
    torch.testing.assert_close(y[:, 196:], layer.conv(torch.relu(x / (1 + layer.bn.eps) ** 0.5)))


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
