"""Layer-wise relevance propagation: an example worked by hand, and what operators pass on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kerf.compress.measures.relevance import divided, layer, relevances
from kerf.compress.models import MODELS
from tests.helpers.attaching import traced
from tests.helpers.sweeps import sweep


def test_a_layer_shares_out_by_products():
    weight, x = torch.tensor([[1.0, -1], [2, 1]]), torch.tensor([[1.0, 2]])
    r = layer(x, weight, torch.tensor([[1.0, 0]]), F.linear)
    assert r.tolist() == [pytest.approx([2, -1])]


def test_what_comes_in_goes_out():
    """Σ R is kept where products of both signs are there, whatever the signs of the inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.double, generator=generator)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.double, generator=generator)
    r = torch.rand(2, 4, 4, 4, dtype=torch.double, generator=generator)
    for inputs in (x, x.abs()):
        assert float(layer(inputs, weight, r, F.conv2d).sum()) == pytest.approx(float(r.sum()), rel=1e-6)
    # each product by its sign
    x, weight = torch.tensor([[1.0, -2, 3]]), torch.tensor([[2.0, 1, -1]])
    assert layer(x, weight, torch.ones(1, 1), F.linear).tolist() == [pytest.approx([2, -0.4, -0.6])]


def test_nothing_is_divided_by_zero():
    assert divided(torch.tensor([1.0, -1, 0]), torch.tensor([0.0, -0.0, 0])).tolist() == pytest.approx([1e9, -1e9, 0])


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.gate, self.head = nn.Conv2d(2, 2, 1), nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.a(x)) + self.b(x))
        y = F.adaptive_avg_pool2d(y, 1) * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1))).mean()
        return self.head(torch.flatten(y, 1))


def test_sums_share_in_proportion_and_gates_take_nothing():
    model = Summed().eval()
    with torch.no_grad():
        for conv, values in ((model.a, [3.0, 1.0]), (model.b, [1.0, 1.0])):
            conv.weight.copy_(torch.tensor(values).view(2, 1, 1, 1))
            conv.bias.zero_()
        model.head.weight.copy_(torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    x = torch.ones(1, 1, 2, 2)
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    before = model(x)
    logits, found = relevances(model, weights, x, torch.tensor([0]))
    assert torch.allclose(logits, before)
    # channels are (4, 2) everywhere: 2 · (4, 2) / 6 of the relevance, a quarter of it at each of four pixels
    assert found["head.weight"].tolist() == [[1.0, 0.0]]
    assert found["a.weight"][0].tolist() == pytest.approx([4 / 3 / 4 * 3 / 4, 2 / 3 / 4 / 2], rel=1e-4)
    assert found["b.weight"][0].tolist() == pytest.approx([4 / 3 / 4 / 4, 2 / 3 / 4 / 2], rel=1e-4)
    assert "gate.weight" not in found or not found["gate.weight"].any()


class Odd(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 8), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.act(self.conv(x)), 1)


@pytest.mark.parametrize(("act", "named"), [(torch.exp, "torch.exp"), (lambda x: x * x, "product")])
def test_functions_without_a_rule_are_refused(act, named):
    with pytest.raises(ValueError, match=f"relevance cannot be followed through .*{named}"):
        relevances(Odd(act), {}, torch.zeros(1, 3, 8, 8), torch.tensor([0]))


@pytest.mark.parametrize("arch", sweep(MODELS, quick=("resnet20", "mobilenet_v3_small")))
def test_the_zoo_is_followed(arch):
    model, _, x = traced(arch)
    weights = {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    with torch.no_grad():
        before = model(x)
    logits, found = relevances(model, weights, x, torch.tensor([1, 2]))
    assert torch.allclose(logits, before)
    gates = {path for path in weights if ".fc1." in path or ".fc2." in path}
    assert set(found) == set(weights) - gates
    assert all(bool(r.isfinite().all()) and bool(r.any()) for r in found.values())
    assert not any(p.grad is not None for p in model.parameters())
