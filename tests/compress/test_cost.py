"""Costs against published figures and against loops."""

import pytest
import torch
from torch import nn

from compress import cost
from compress.models import create


@pytest.mark.parametrize(
    ("arch", "classes", "size", "macs", "params"),
    [
        ("resnet50", 1000, 224, 4_089_184_256, 25_557_032),
        ("mobilenet_v1", 1000, 224, 568_740_352, 4_231_976),
        ("mobilenet_v2", 1000, 224, 300_774_272, 3_504_872),
        ("mobilenet_v3_large", 1000, 224, 216_589_760, 5_483_032),
        # with 1×1 projections instead of option A, the usual figure: 125,747,840
        ("resnet56", 10, 32, 125_747_840 - 16 * 32 * 16**2 - 32 * 64 * 8**2, 853_018),
    ],
)
def test_published_figures(arch, classes, size, macs, params):
    found = cost.count(create(arch, classes, size), torch.zeros(1, 3, size, size))
    assert (found.macs_dense, found.macs) == (macs, macs)
    assert (found.params_dense, found.params) == (params, params)


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
