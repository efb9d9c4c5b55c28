"""Movement pruning: an example worked by hand."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.movement import cubic, straight
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import OneByN, Weight
from tests.helpers.attaching import plan, traced


def one_layer(rows: int, columns: int, granularity=None):
    model = nn.Sequential(nn.Conv2d(3, columns, 1), nn.Conv2d(columns, rows, 1))
    example = torch.zeros(1, 3, 2, 2)
    graph = DependencyGraph.trace(model, example)
    (unit,) = (granularity or Weight()).split(model, graph, example)
    return model, graph, unit


@pytest.mark.parametrize(("w", "slope", "moved"), [(2, -0.5, 1), (2, 0.5, -1), (-2, 0.5, 1), (0, 0.5, 0)])
def test_scores_grow_when_weights_move_away_from_zero(w, slope, moved):
    _, _, unit = one_layer(1, 1)
    weight, score = torch.full((1, 1, 1, 1), float(w)), torch.zeros(1, requires_grad=True)
    (straight(weight, score, torch.ones(1, dtype=torch.bool), unit) * slope).sum().backward()
    assert float(-score.grad) == moved


def test_masked_weights_feel_nothing_their_scores_do():
    _, _, unit = one_layer(1, 1)
    weight, score = torch.ones(1, 1, 1, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    masked = straight(weight, score, torch.zeros(1, dtype=torch.bool), unit)
    masked.sum().backward()
    assert float(masked) == float(weight.grad) == 0
    assert float(score.grad) == 1


def test_a_blocks_score_feels_all_of_it():
    _, _, unit = one_layer(4, 3, OneByN(2))
    weight, score = torch.randn(4, 3, 1, 1), torch.zeros(6, requires_grad=True)
    slope = torch.randn(4, 3, 1, 1)
    (straight(weight, score, torch.ones(6, dtype=torch.bool), unit) * slope).sum().backward()
    wanted = (weight * slope).view(2, 2, 3).sum(1).flatten()
    assert torch.allclose(score.grad, wanted, atol=1e-6)
    keep = torch.tensor([True, False, True, True, False, False])
    assert float(unit.mask(keep).float().mean()) == float(keep.float().mean())


def test_the_cubic_schedule():
    hard = [cubic(t, 100, 10, 2, 1.0, 0.15) for t in (5, 10, 27, 45, 80, 81)]
    assert hard == pytest.approx([1, 1, 0.5189372, 0.25625, 0.15, 0.15])
    assert cubic(45, 100, 10, 2, 0.0, 0.1) == pytest.approx(0.0875)


def attached(name: str, model, graph, unit, steps: int = 100, sparsity: float = 0.5, **own):
    chosen = METHODS[name](Settings(n=2), **own)
    chosen.pressure.attach(model, graph, (unit,), plan(sparsity, steps))
    return chosen.pressure


def test_the_largest_scores_stay():
    pressure = attached("movement", *one_layer(2, 2))
    with torch.no_grad():
        pressure.s[0].copy_(torch.tensor([0.3, -0.1, 0.2, 0.5]))
    pressure._choose(0)
    assert pressure.keep[0].all()  # at the start all do
    pressure._choose(100)
    assert pressure.keep[0].tolist() == [True, False, False, True]


def test_soft_movement_begins_with_everything_and_half_a_penalty():
    model, graph, unit = one_layer(20, 20)
    pressure = attached("soft_movement", model, graph, unit)
    nothing = lambda *_: (torch.zeros(()), torch.zeros(()))  # noqa: E731
    assert float(pressure.loss(model, None, None, nothing, 0)[0]) == 0  # λ(0) = 0
    assert pressure.keep[0].all()
    assert float(pressure.loss(model, None, None, nothing, 100)[0]) == pytest.approx(400 * 0.5)
    assert pressure.keep[0].all()  # σ(0) > 0.1
    assert pressure._at(45, 0.0, 0.1) * 400 / 0.1 == pytest.approx(0.875 * 400)
    with torch.no_grad():
        pressure.s[0].copy_(-5 - torch.rand(400))
    pressure._choose(45)
    assert int(pressure.keep[0].sum()) == int(0.005 * 400) + 1


def test_scores_follow_adam():
    model, graph, unit = one_layer(2, 2)
    pressure = attached("movement", model, graph, unit)
    mine, theirs = pressure.s[0], nn.Parameter(torch.zeros(4))
    sgd, adam = torch.optim.SGD([mine], lr=0.01), torch.optim.Adam([theirs], lr=0.01)
    torch.manual_seed(0)
    for step in range(20):
        mine.grad = torch.randn(4)
        theirs.grad = mine.grad.clone()
        pressure.edit_gradients(model, step)
        sgd.step()
        adam.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_blocks_of_short_last_rows_take_part():
    model, graph, x = traced("resnet20")
    chosen = METHODS["block_movement"](Settings(n=3))
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model.float(), graph, units, plan())
    model(x.float()).sum().backward()
    assert all(bool(s.grad.ne(0).any()) for s in chosen.pressure.s)
