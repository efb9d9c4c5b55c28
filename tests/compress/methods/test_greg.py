"""Growing regularisation: an example worked by hand."""

import math

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.greg import going
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from tests.helpers.attaching import BY_MACS, plan, traced

AUTHORS = 10**8  # steps: enough for the authors' own pace


def attached(name: str, steps: int = AUTHORS, sparsity: float = 0.5, **own):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    x = torch.zeros(1, 3, 8, 8, dtype=torch.double)
    graph = DependencyGraph.trace(model, x)
    chosen = METHODS[name](Settings(), **own)
    units = chosen.granularity.split(model, graph, x)
    chosen.pressure.attach(model, graph, units, plan(sparsity, steps))
    return model, chosen.pressure


def test_how_many_go():
    assert [going(16, 0.75), going(64, 0.7), going(8, 1.0), going(10, 0.3)] == [12, 45, 7, 3]


def test_weights_that_go_decay_as_the_card_says():
    """No data: rate 1e-3, no momentum; λ grows by 1e-4 every 5 steps, before the step."""
    model, pressure = attached("greg1", interval=5)
    goes = pressure.goes[0]
    before = model[0].weight.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(1000):
        model[0].weight.grad = torch.zeros_like(before)
        pressure.edit_gradients(model, step)
        optimiser.step()
    assert pressure.level == pytest.approx(0.02)
    assert torch.allclose(model[0].weight[goes] / before[goes], torch.tensor(0.99).double(), atol=1e-6)
    assert torch.equal(model[0].weight[~goes], before[~goes])


def test_the_limit_is_reached_when_the_card_says():
    _, pressure = attached("greg1", interval=5)
    left, updates = 0.0, 0
    while pressure.level < 1.0 - 1e-9:
        pressure.grow()
        pressure.ratio = 0.0  # no weights shrink here
        updates += 1
        left += 5 * math.log1p(-1e-3 * pressure.level)
    assert updates == 10_000
    # the first step at which λ is 1 is 9,999 · 5: one of those five
    assert math.exp(left - 4 * math.log1p(-1e-3)) == pytest.approx(1.38e-11, rel=0.01)
    pressure.grow()
    assert pressure.finished


def test_picking_tells_curvature_apart():
    """min ½ h (w − 1)² + ½ λ w² is h / (h + λ); equal weights are ranked by h."""
    _, pressure = attached("greg2")
    while not pressure.picked:
        pressure.grow()
    assert pressure.level == pytest.approx(1e-2)  # after 1000 updates
    model, pressure = attached("greg2")
    for _ in range(999):
        pressure.grow()
    assert not pressure.picked
    h = torch.tensor([1e-3, 1e-2, 1e-1, 1.0, 1e-3, 1e-2, 1e-1, 1.0]).double()
    assert (h / (h + 1e-2))[:4].tolist() == pytest.approx([0.0909, 0.5, 0.9091, 0.9901], abs=5e-5)
    best = h / (h + pressure.level)
    with torch.no_grad():
        model[0].weight.copy_(best.view(8, 1, 1, 1).expand_as(model[0].weight))
    model[0].weight.grad = h.view(8, 1, 1, 1) * (model[0].weight.detach() - 1)
    pressure.edit_gradients(model, 1)
    assert float(model[0].weight.grad.abs().max()) < 1e-9  # at rest
    pressure.grow()
    assert pressure.goes[0].tolist() == [True, True, False, False] * 2


def test_kept_weights_grow_a_little_after_picking():
    _, pressure = attached("greg2")
    for _ in range(1001):
        pressure.grow()
    strength, goes = pressure.strength["0.weight"], pressure.goes[0]
    assert strength[~goes].tolist() == pytest.approx([-1e-4] * 4)
    assert strength[goes].tolist() == pytest.approx([1e-2 + 1e-4] * 4)


def test_a_layer_whose_weights_are_gone_is_finished():
    model, pressure = attached("greg1")
    with torch.no_grad():
        model[0].weight[pressure.goes[0]] *= 1e-4
    pressure.grow()
    assert pressure.finished
    level = pressure.level
    pressure.grow()
    assert pressure.level == level


@pytest.mark.parametrize("name", ["greg1", "greg2"])
def test_short_phases_reach_the_limit_too(name):
    _, pressure = attached(name, 500)
    for step in range(460):  # ten elevenths of 500, and an interval
        if step % pressure.interval == 0:
            pressure.grow()
            pressure.ratio = 0.0
    assert pressure.finished


def test_layers_that_lose_nothing_feel_nothing():
    model, graph, x = traced("resnet20")
    chosen = METHODS["greg2"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.01, AUTHORS))
    pressure._choose()
    pressure._spread()
    assert set(pressure.strength) == {u.channels.makers[0] for u, g in zip(units, pressure.goes) if g.any()}


@pytest.mark.parametrize("name", ["greg1", "greg2"])
def test_single_weights_feel_penalties_of_their_own(name):
    torch.manual_seed(0)
    model, graph, x = traced("resnet20")
    chosen = METHODS[name](BY_MACS, unit="weight")
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.3, 100))
    for _ in range(80):
        pressure.grow()
    assert pressure.picked
    path, goes = units[0].path, pressure.goes[0]
    weight = model.get_parameter(path)
    assert int(goes.sum()) == going(goes.numel(), 0.3)
    assert float(weight.abs().flatten()[goes].max()) <= float(weight.abs().flatten()[~goes].min())
    weight.grad = torch.zeros_like(weight)
    pressure.edit_gradients(model, 1)
    kept = -1e-4 if name == "greg2" else 0.0
    wanted = torch.where(goes.view(weight.shape), pressure.level, kept) * weight.detach()
    assert torch.allclose(weight.grad, wanted)
    keep = chosen.scope([chosen.criterion(u) for u in units], units, 0.3)
    assert all(torch.equal(k, ~g) for k, g in zip(keep, pressure.goes))


def test_of_single_weights_the_limit_alone_ends_it():
    model, graph, x = traced("resnet20")
    chosen = METHODS["greg1"](BY_MACS, unit="weight")
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan(0.5, AUTHORS))
    with torch.no_grad():
        for unit, goes in zip(units, chosen.pressure.goes):
            model.get_parameter(unit.path).mul_(unit.mask(~goes))
    chosen.pressure.grow()
    assert not chosen.pressure.finished
    with pytest.raises(ValueError, match="unit is 'kernel': expected one of channel, weight"):
        METHODS["greg1"](BY_MACS, unit="kernel")


@pytest.mark.parametrize(
    ("name", "own"),
    [("greg1", {"prune": 0.0}), ("greg2", {"pick": 0.0}), ("greg2", {"prune": -1e-4}), ("greg1", {"interval": 0})],
)
def test_a_penalty_that_does_not_grow_is_refused(name, own):
    """greg2 with pick = 0 would be greg1 under its name."""
    with pytest.raises(ValueError, match="expected above 0, and at least 1"):
        METHODS[name](Settings(), **own)
