"""Movement pruning: an example worked by hand."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.movement import cubic, largest, straight
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


def nothing(*_):
    return torch.zeros(()), torch.zeros(())


def test_the_penalty_grows_with_what_has_gone():
    model, graph, unit = one_layer(20, 20)
    pressure = attached("soft_movement", model, graph, unit, penalty=400.0)
    assert float(pressure.loss(model, None, None, nothing, 0)[0]) == 0  # λ(0) = 0
    assert pressure.keep[0].all()
    assert float(pressure.loss(model, None, None, nothing, 45)[0]) == pytest.approx(0.875 * 400 * 0.5)
    assert float(pressure.loss(model, None, None, nothing, 100)[0]) == pytest.approx(400 * 0.5)
    assert int(pressure.keep[0].sum()) == 200


def test_of_equal_ones_the_later_stay():
    scores = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0])
    found = [largest(scores, count).nonzero().flatten().tolist() for count in (1, 2, 3, 4, 5)]
    assert found == [[3], [0, 3], [0, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize("name", ["movement", "soft_movement", "block_movement"])
def test_the_masks_of_the_last_step_are_the_cut(name, sparsity):
    """Otherwise the network that is left was never trained: not for a single step."""
    model, graph, x = traced("resnet20")
    chosen = METHODS[name](Settings(n=4))
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(sparsity, 20))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in range(20):
            pressure._choose(step)
            for i, s in enumerate(pressure.s):  # as a step moves them, behind the choice
                s.add_(torch.randn(len(s), generator=random) + i)
    masks = [keep.clone() for keep in pressure.keep]
    cut = chosen.scope([chosen.criterion(u) for u in units], units, sparsity)
    assert all(torch.equal(mask, keep) for mask, keep in zip(masks, cut))
    counts = torch.tensor([[int((~m).sum()), len(m)] for m in masks])
    assert abs(float(counts[:, 0].sum() / counts[:, 1].sum()) - sparsity) < 0.01
    shares = [float(m.float().mean()) for m in masks]
    if name == "movement":
        assert max(shares) - min(shares) < 0.02
    else:  # one threshold for all: later layers have larger scores
        assert shares[0] < 0.05
        assert shares[-1] > shares[0]


@pytest.mark.parametrize("name", ["soft_movement", "block_movement"])
def test_other_targets_are_other_trainings(name):
    def trained(sparsity: float) -> torch.Tensor:
        torch.manual_seed(0)
        model, graph, unit = one_layer(8, 8, OneByN(2) if "block" in name else None)
        pressure = attached(name, model, graph, unit, 40, sparsity)
        train(model, pressure, torch.randn(8, 8, 1, 1), 40)
        return model[1].weight.detach()

    assert not torch.equal(trained(0.3), trained(0.6))


def train(model, pressure, wanted, steps: int) -> None:
    """Towards a layer that computes with `wanted`, from images that its input is random in."""
    own = [p for group in pressure.parameter_groups(model) for p in group.names]
    named = dict(model.named_parameters())
    groups = [{"params": [named[n] for n in own], "lr": 0.01}, {"params": [model[1].weight], "lr": 0.05}]
    sgd, layer = torch.optim.SGD(groups), model[1]

    def task(_, x, y):
        return (layer(x) - y).square().mean(), y

    for step in range(steps):
        x = torch.randn(32, 8, 2, 2)
        sgd.zero_grad()
        pressure.loss(model, x, torch.nn.functional.conv2d(x, wanted, layer.bias), task, step)[0].backward()
        pressure.edit_gradients(model, step)
        sgd.step()


def test_blocks_that_matter_are_found_and_random_ones_are_not():
    """A trained layer is a sparse one and noise: training moves the noise to zero, and so scores tell blocks apart."""
    torch.manual_seed(0)
    model, graph, unit = one_layer(8, 8, OneByN(2))
    true = torch.rand(unit.count) < 0.5
    wanted = torch.sign(torch.randn(8, 8, 1, 1)) * unit.mask(true)
    with torch.no_grad():
        model[1].weight.copy_(wanted + 0.4 * torch.randn(8, 8, 1, 1))
    sparsity = float(1 - true.float().mean())
    chosen = METHODS["block_movement"](Settings(n=2))
    chosen.pressure.attach(model, graph, (unit,), plan(sparsity, 150))
    train(model, chosen.pressure, wanted, 150)

    def hits(recipe) -> float:
        (keep,) = recipe.scope([recipe.criterion(unit)], (unit,), sparsity)
        return float((keep == true).float().mean())

    assert hits(chosen) > 0.95
    assert hits(METHODS["random_block"](Settings(n=2))) < 0.8


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


@pytest.mark.parametrize(("name", "most"), [("movement", 1 / 3), ("soft_movement", 1 / 3), ("block_movement", 0.2)])
def test_a_warm_up_that_leaves_no_steps_to_prune_in_is_refused(name, most):
    """With warm = 1 nothing is hidden before the cut: whatever the target, the dense network is what is trained."""
    for warm in (most, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"warm is {warm:g}: expected a share of the steps"):
            METHODS[name](Settings(), warm=warm)
    pressure = METHODS[name](Settings(), warm=most - 0.01).pressure
    pressure.plan = plan(0.5, 100)
    gone = [pressure.gone(step) for step in range(100)]
    assert gone[0] == 0
    assert gone[-1] == 0.5
    assert gone == sorted(gone)
    with pytest.raises(ValueError, match="score_rate 0, penalty"):
        METHODS[name](Settings(), score_rate=0.0)
