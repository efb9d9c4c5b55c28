"""Soft 1xN training: what is hidden learns on, comes back, and leaves what was trained."""

import pytest
import torch
from torch import nn

import kerf
from kerf.compress.methods import METHODS
from kerf.compress.methods.subp import straight_through
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan
from kerf.errors import BadInput
from tests.helpers.random_networks import difference


def attached(sparsity: float = 0.5, steps: int = 40, each: int = 20, **own):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    example = torch.zeros(1, 3, 4, 4)
    graph = DependencyGraph.trace(model, example)
    rearrange = own.pop("rearrange", False)
    recipe = METHODS["subp"](Settings(n=2, rearrange=rearrange), **own)
    units = recipe.granularity.split(model, graph, example)
    recipe.pressure.attach(model, graph, units, Plan(steps, lambda _: 0.1, sparsity, each=each))
    return model, recipe, units


def rows(mask: torch.Tensor) -> torch.Tensor:
    """(R, I) of blocks of height 2."""
    blocks = mask.flatten(2).view(3, 2, 8, -1)
    assert bool((blocks.all((1, 3)) == blocks.any(1).any(2)).all())  # whole blocks
    return blocks.all((1, 3))


@pytest.mark.quick
def test_hidden_weights_have_the_gradient_of_weights_that_are_there():
    weight, mask = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3) > 0.5
    slope = torch.randn(4, 3)
    made = straight_through(weight, mask)
    assert torch.equal(made, weight * mask)
    (made * slope).sum().backward()
    assert torch.equal(weight.grad, slope)


@pytest.mark.quick
def test_every_block_row_keeps_as_many_and_a_block_that_outgrows_another_comes_back():
    model, recipe, _ = attached()
    pressure, weight = recipe.pressure, model[2].weight
    pressure._choose(39)
    first = rows(pressure.masks["2.weight"])
    assert first.sum(1).tolist() == [4, 4, 4]
    hidden = int((~first[0]).nonzero()[0])
    with torch.no_grad():
        weight[:2, hidden] = 5.0
    pressure._choose(39)
    assert bool(rows(pressure.masks["2.weight"])[0, hidden])
    assert rows(pressure.masks["2.weight"]).sum(1).tolist() == [4, 4, 4]


def test_the_share_that_is_hidden_grows_along_a_cubic_ramp_and_masks_settle():
    _, recipe, _ = attached(steps=80, each=20, choices=5)
    pressure = recipe.pressure
    assert [pressure.gone(t) for t in (0, 20, 40, 79)] == pytest.approx([0, 0.5 * (1 - 0.5**3), 0.5, 0.5])
    chosen = [t for t in range(80) if pressure.chooses(t)]
    assert chosen == list(range(0, 61, 4))  # 5 an epoch of 20 steps, until 0.75 of the steps are over


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_the_masks_of_the_last_step_are_the_cut_and_leave_what_was_trained(steps):
    model, recipe, units = attached(steps=steps)
    x, task = torch.randn(2, 3, 4, 4), lambda m, x, y: (m(x).square().mean(), m(x))
    for step in range(steps):
        loss, _ = recipe.pressure.loss(model, x, torch.zeros(2), task, step)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    with torch.no_grad():
        before = model(x)
        (keep,) = recipe.scope([recipe.criterion(u) for u in units], units, 0.5)
        assert torch.equal(units[0].mask(keep), recipe.pressure.masks["2.weight"])
        assert keep.float().mean() == 0.5
        recipe.pressure.fold(model)
        assert bool(model[2].weight.all())  # none was set to zero while it was hidden
        model[2].weight.mul_(units[0].mask(keep))
        assert difference(before, model(x)) < 1e-6


def test_channels_are_ordered_before_the_first_step():
    model, _, _ = attached(rearrange=True)
    plain, _, _ = attached()
    x = torch.randn(2, 3, 4, 4)
    assert not torch.equal(model[0].weight, plain[0].weight)
    assert difference(model(x), plain(x)) < 1e-6


def test_what_is_hidden_is_saved_and_restored():
    _, recipe, _ = attached()
    recipe.pressure._choose(39)
    saved = {name: value.clone() for name, value in recipe.pressure.state().items()}
    masks = recipe.pressure.masks["2.weight"].clone()
    _, again, _ = attached()
    again.pressure.restore(saved)
    assert torch.equal(again.pressure.masks["2.weight"], masks)
    assert not bool(masks.all())


def test_in_a_loop_of_ones_own():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    data = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(4)]
    pruned = kerf.prune(
        model, "subp", example=data[0][0][:1], n=4, sparsity=0.5, data=data, steps=12, rate=0.05, rearrange=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with pruned.hold(optimizer):
        for _ in range(3):
            for x, y in data:
                loss, _ = pruned.loss(x, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    pruned.finish()
    assert list(pruned.zero_blocks.values()) == [0.5]


@pytest.mark.parametrize("own", [{"ramp": 0.9, "settled": 0.5}, {"ramp": 0.0}, {"choices": 0}, {"row_multiple": 0}])
def test_numbers_out_of_range_are_refused(own):
    with pytest.raises(BadInput, match="expected 0 < ramp <= settled <= 1"):
        METHODS["subp"](Settings(), **own)
