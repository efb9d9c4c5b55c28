"""Costs against published figures and against loops."""

import pytest
import torch
from torch import nn

from kerf.compress.models import create
from kerf.compress.network import cost

pytestmark = pytest.mark.quick

PROJECTIONS = 16 * 32 * 16**2 + 32 * 64 * 8**2  # MACs of the two 1×1 shortcuts of a CIFAR ResNet


@pytest.mark.parametrize(
    ("arch", "classes", "size", "macs", "params"),
    [
        ("resnet50", 1000, 224, 4_089_184_256, 25_557_032),
        ("mobilenet_v1", 1000, 224, 568_740_352, 4_231_976),
        ("mobilenet_v2", 1000, 224, 300_774_272, 3_504_872),
        ("mobilenet_v3_large", 1000, 224, 216_589_760, 5_483_032),
        ("resnet56_projection", 10, 32, 125_747_840, 855_770),
        ("resnet56", 10, 32, 125_747_840 - PROJECTIONS, 853_018),
        ("resnet110_projection", 10, 32, 253_149_824, 1_730_714),
        ("vgg16", 10, 32, 313_196_544 + 512 * 10, 14_728_266),
        ("densenet40", 10, 32, 264_812_928, 1_019_722),
    ],
)
def test_published_figures(arch, classes, size, macs, params):
    found = cost.count(create(arch, classes, size), torch.zeros(1, 3, size, size))
    assert (found.macs_dense, found.macs) == (macs, macs)
    assert (found.params_dense, found.params) == (params, params)


@pytest.mark.parametrize(("arch", "macs"), [("resnet56", 126_534_272), ("resnet110", 253_936_256)])
def test_projections_counted_as_2x2(arch, macs):
    """The figures ResRep starts from: a 2×2 kernel has three more positions than the 1×1 one that runs."""
    found = cost.count(create(f"{arch}_projection", 10, 32), torch.zeros(1, 3, 32, 32))
    projections = sum(layer.macs for path, layer in found.layers.items() if "projection" in path)
    assert projections == PROJECTIONS
    assert found.macs + 3 * projections == macs


def densenet40_macs(widths: list[int]) -> int:
    """By arithmetic: a stem, and three times twelve layers that read all before them, with a 1×1 in between."""
    stem, *widths = widths
    macs, channels, side = 3 * stem * 9 * 32**2, stem, 32
    for i, width in enumerate(widths):
        if i in (12, 25):
            macs += channels * width * side**2
            channels, side = width, side // 2
        else:
            macs += channels * width * 9 * side**2
            channels += width
    return macs + channels * 10


def test_densenet40_figures_of_c_sgd():
    """264.8 M MACs; three filters a layer, stem and transitions kept: 56.3 M, 78.7 % fewer."""
    dense, narrow = ([16] + 12 * [g] + [160] + 12 * [g] + [304] + 12 * [g] for g in (12, 3))
    macs = densenet40_macs(dense)
    assert macs == cost.count(create("densenet40", 10, 32), torch.zeros(1, 3, 32, 32)).macs
    assert macs == pytest.approx(264.8e6, rel=0.001)
    assert densenet40_macs(narrow) == pytest.approx(56.3e6, rel=0.001)
    assert 1 - densenet40_macs(narrow) / macs == pytest.approx(0.787, abs=0.0005)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)  # 8×8 -> 4×4
        self.twice = nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.linear = nn.Linear(4, 5)
        self.unused = nn.Linear(7, 7, bias=False)

    def forward(self, x):
        return self.linear(self.depthwise(self.twice(self.twice(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_are_counted_per_image_and_per_call(batch):
    model = Net().train()
    found = cost.count(model, torch.zeros(batch, 3, 8, 8))
    assert {path: layer.macs for path, layer in found.layers.items()} == {
        "conv.weight": 4 * 3 * 9 * 16,
        "twice.weight": 2 * 4 * 4 * 16,
        "depthwise.weight": 4 * 9 * 16,
        "linear.weight": 20,
    }
    assert found.params == sum(p.numel() for p in model.parameters())
    assert model.training


def test_masked_weights_cost_nothing():
    model = Net()
    mask = torch.ones_like(model.twice.weight, dtype=torch.bool)
    mask[:3] = False
    found = cost.count(model, torch.zeros(1, 3, 8, 8), {"twice.weight": mask})
    assert found.macs_dense - found.macs == 2 * 12 * 16
    assert found.params_dense - found.params == 12
    assert found.layers["twice.weight"] == cost.LayerCost(2 * 16 * 16, 2 * 4 * 16, 16, 4)


def test_densities():
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Linear(2, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
        model[0].weight[:4, 0] = 0  # one whole 1×4 block
        model[0].weight[4, 1] = 0  # half of a short one
        model[1].weight[1:, 0] = 0  # three quarters of one
    assert cost.element_density(model, ["0.weight"]) == pytest.approx(7 / 12)
    assert cost.block_density(model, ["0.weight"], 4) == pytest.approx(3 / 4)
    assert cost.block_density(model, ["1.weight"], 4) == 1
    assert cost.block_density(model, ["0.weight", "1.weight"], 4) == pytest.approx(5 / 6)
    assert cost.block_density(model, ["0.weight"], 1) == pytest.approx(7 / 12)
    with pytest.raises(ValueError, match="N is 0"):
        cost.block_density(model, ["0.weight"], 0)
