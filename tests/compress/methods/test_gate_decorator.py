"""Gate decorator: an example worked by hand, ticks and tocks."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.gate_decorator import GatedBatchNorm2d, gate, ungate
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from tests.helpers.attaching import BY_MACS, plan, traced
from tests.helpers.random_networks import difference


def one_norm(gamma: float, beta: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(1, eps=0.0).eval()
    with torch.no_grad():
        norm.weight.fill_(gamma)
        norm.bias.fill_(beta)
    return norm


def test_a_gate_is_the_same_function():
    norm, x = one_norm(0.5, 0.2), torch.ones(1, 1, 1, 1)
    assert norm(x).item() == pytest.approx(0.7)
    with torch.no_grad():
        gate(norm)
    assert (float(norm.weight), float(norm.bias)) == pytest.approx((0.5, 0.4))
    assert norm(x).item() == pytest.approx(0.7)
    with torch.no_grad():
        ungate(norm)
    assert (type(norm), float(norm.bias)) == (nn.BatchNorm2d, pytest.approx(0.2))


@pytest.mark.parametrize(("gamma", "beta", "shift"), [(0.0, 0.3, 0.0), (0.01, 0.3, 10.0), (-0.01, 0.3, -10.0)])
def test_shifts_are_bounded(gamma, beta, shift):
    norm = one_norm(gamma, beta)
    with torch.no_grad():
        gate(norm)
    assert float(norm.bias) == shift


def test_the_gates_gradient_is_that_of_scale_and_shift():
    """φ ∂L/∂φ = γ ∂L/∂γ + β ∂L/∂β."""
    torch.manual_seed(0)
    norm, x, y = nn.BatchNorm2d(5), torch.randn(6, 5, 3, 3), torch.randn(6, 5, 3, 3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    (norm(x) * y).sum().backward()
    wanted = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad
    norm.weight.grad = norm.bias.grad = None
    with torch.no_grad():
        gate(norm)
    (norm(x) * y).sum().backward()
    assert torch.allclose(norm.weight * norm.weight.grad, wanted, atol=1e-5)


def attached(arch: str = "resnet20", steps: int = 1000, sparsity: float = 0.5, settings: Settings = BY_MACS, **own):
    model, graph, x = traced(arch)
    chosen = METHODS["gate_decorator"](settings, **own)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan(sparsity, steps))
    return model, graph, units, chosen


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v3_small", "densenet40"])
def test_attaching_and_folding_keep_the_function(arch):
    model, graph, x = traced(arch)
    with torch.no_grad():
        before = model(x)
    chosen = METHODS["gate_decorator"](BY_MACS)
    chosen.pressure.attach(model, graph, chosen.granularity.split(model, graph, x[:1]), plan())
    assert any(isinstance(m, GatedBatchNorm2d) for m in model.modules())
    with torch.no_grad():
        assert difference(before, model(x)) < 1e-9
        chosen.pressure.fold(model)
        assert difference(before, model(x)) < 1e-9
    assert not any(isinstance(m, GatedBatchNorm2d) or m._forward_hooks for m in model.modules())


def test_gradients_count_batch_by_batch():
    """L = ½ (φ · x − y)²: |gradient · φ| is (0.6, 0.15), then (0.3, 0.3); their sum (0.9, 0.45), not (0.3, 0.45)."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    example = torch.zeros(1, 3, 4, 4)
    chosen = METHODS["gate_decorator"](BY_MACS)
    graph = DependencyGraph.trace(model, example)
    units = chosen.granularity.split(model, graph, example)
    chosen.pressure.attach(model, graph, units, plan(0.3, 1000))
    tick = next(s for s in range(1000) if chosen.pressure.at(s)[1] is None)
    phi = model[1].weight
    with torch.no_grad():
        phi.copy_(torch.tensor([2.0, -1.0]))
    for x, y in (([1.0, 0.5], 1.2), ([-0.5, 1.0], -2.3)):
        phi.grad = None
        (0.5 * ((phi * torch.tensor(x)).sum() - y) ** 2).backward()
        chosen.pressure.edit_gradients(model, tick)
    assert chosen.pressure.scores[0].tolist() == pytest.approx([0.9, 0.45])


def test_ticks_follow_tocks():
    pressure = attached(steps=1000, rounds=5, ticks=10)[3].pressure
    seen = [pressure.at(step) for step in range(1000)]
    assert pressure.rounds == 5
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {done for done, tock in seen if tock is not None} == {0, 10, 20, 30, 40}
    assert {done for done, tock in seen if tock is None} == set(range(50))
    assert sum(tock is not None for _, tock in seen) == 500
    assert pressure.rate_factor(0) == pytest.approx(0.1)
    assert pressure.rate_factor(50) == pytest.approx(1.0)
    assert pressure.rate_factor(150) == pytest.approx(0.1)


def test_in_ticks_convolutions_rest():
    model, _, _, chosen = attached()
    pressure = chosen.pressure
    tick = next(s for s in range(1000) if pressure.at(s)[1] is None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    pressure.edit_gradients(model, 0)
    assert all(parameter.grad is not None for parameter in model.parameters())
    pressure.edit_gradients(model, tick)
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    gates = {
        f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, GatedBatchNorm2d) for p in ("weight", "bias")
    }
    assert learning == gates | {"linear.weight", "linear.bias"}


def test_a_tick_removes_exactly_what_is_due_and_the_best_tenth_goes_last():
    _, _, units, chosen = attached(settings=Settings(), sparsity=0.5, rounds=5, ticks=10)
    pressure = chosen.pressure
    total = sum(u.count for u in units)
    torch.manual_seed(0)
    for score in pressure.scores:
        score.copy_(torch.rand(len(score)))
    pressure.scores[0].fill_(0.0)  # a layer that would go whole
    due = next(s for s in range(1000) if pressure.at(s)[0] == 30)
    pressure.loss(nn.Identity(), None, None, lambda *_: (torch.zeros(()), None), due)
    assert total - sum(int(k.sum()) for k in pressure.masks.kept) == int(0.3 * total + 1e-9)
    assert int(pressure.masks.kept[0].sum()) == max(1, int(0.1 * units[0].count))
    before = [k.clone() for k in pressure.masks.kept]
    due = next(s for s in range(1000) if pressure.at(s)[0] == 40)
    pressure.loss(nn.Identity(), None, None, lambda *_: (torch.zeros(()), None), due)
    assert all(not bool((k & ~b).any()) for k, b in zip(pressure.masks.kept, before))  # none comes back
    assert total - sum(int(k.sum()) for k in pressure.masks.kept) == int(0.4 * total + 1e-9)


@pytest.mark.parametrize("own", [{"rounds": 0}, {"ticks": 0}])
def test_rounds_without_ticks_are_refused(own):
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        METHODS["gate_decorator"](Settings(), **own)
