import pytest
import torch

from kerf.compress.measures import feature_maps
from kerf.compress.methods import METHODS
from kerf.compress.pruning import removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan
from tests.helpers.attaching import plan, traced
from tests.helpers.random_networks import difference
from tests.helpers.sweeps import sweep


def ramp(arch: str = "resnet20", steps: int = 8, each: int = 1, sparsity: float = 0.5, **own):
    model, graph, x = traced(arch)
    recipe = METHODS["while_training"](Settings(residual=True), **own)
    units = recipe.granularity.split(model, graph, x[:1])
    recipe.pressure.attach(model, graph, units, Plan(steps, lambda _: 0.1, sparsity, each=each))
    return model, graph, units, x, recipe


def stepped(pressure, model, x, steps: int):
    """Counts of removed filters of the widest layer after each step."""
    for step in range(steps):
        pressure.loss(model, x, torch.arange(len(x)), lambda m, x, y: (m(x).sum(), None), step)[0].backward()
        pressure.edit_gradients(model, step)
        pressure.after_step(model, step)
        model.zero_grad()
        yield max(int((~mask).sum()) for mask in pressure.masks)


def test_filters_go_in_equal_steps():
    model, _, _, x, recipe = ramp(start=0.0, over=1.0)
    assert list(stepped(recipe.pressure, model, x, 8)) == [4, 8, 12, 16, 20, 24, 28, 32]  # of 64


def test_they_go_at_the_ends_of_epochs_between_the_first_and_the_last():
    model, _, _, x, recipe = ramp(steps=16, each=2, start=0.25, over=0.5)
    assert list(stepped(recipe.pressure, model, x, 16)) == [0, 0, 0, 0, 0, 8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 32]


@pytest.mark.parametrize("by", ["l1", "activation"])
def test_the_smallest_of_every_layer_go(by):
    """Their filters, or what they are on the batch that was trained on last, both before the cut."""
    model, graph, units, x, recipe = ramp(by=by, start=0.0, over=1.0, steps=2)
    recipe.pressure.loss(model, x, torch.arange(2), lambda m, x, y: (m(x).sum(), None), 0)
    before = [u.rows().abs().sum(1) for u in units]
    if by == "activation":
        found = feature_maps.mean(model, graph, units, lambda: iter([(x, torch.arange(2))]), 2, feature_maps.level)
        before = [found[u.path] for u in units]
    recipe.pressure.edit_gradients(model, 0)
    recipe.pressure.after_step(model, 0)
    for mask, size in zip(recipe.pressure.masks, before):
        assert int((~mask).sum()) == len(mask) // 4
        assert float(size[~mask].max()) <= float(size[mask].min())  # dead ones are equal


def test_a_maps_level_is_its_mean():
    maps = torch.tensor([[[1.0, 0], [0, 1]], [[2, 2], [2, 2]]])
    assert feature_maps.level(maps[None]).tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize("by", sweep(("l1", "activation", "random"), quick=("activation",)))
def test_what_is_gone_stays_at_zero_while_momentum_goes_on(by):
    model, _, units, x, recipe = ramp(by=by, start=0.0, over=0.5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    before: dict[str, torch.Tensor] = {}
    for step in range(6):
        task = lambda m, x, _: (m(x).square().mean(), None)  # noqa: E731
        loss, _ = recipe.pressure.loss(model.train(), x, torch.zeros(2), task, step)
        sgd.zero_grad()
        loss.backward()
        recipe.pressure.edit_gradients(model, step)
        sgd.step()
        recipe.pressure.after_step(model, step)
        for unit, mask in zip(units, recipe.pressure.masks):
            rows = unit.rows()
            assert not rows[~mask].any()
            assert bool(rows[mask].any(1).all())
            assert not (mask & ~before.get(unit.path, mask)).any()  # none comes back
            before[unit.path] = mask
    assert all(int(mask.sum()) == len(mask) // 2 for mask in recipe.pressure.masks)


@pytest.mark.parametrize("arch", sweep(("mobilenet_v3_small", "densenet40", "mobilenet_v2"), ("mobilenet_v3_small",)))
def test_held_at_zero_is_cut(arch):
    """Behind depthwise filters, gates and concatenations too."""
    model, graph, units, x, recipe = ramp(arch, start=0.0, over=0.5)
    for _ in stepped(recipe.pressure, model, x, 4):
        pass
    model.eval()
    with torch.no_grad():
        held = model(x)
        keep = recipe.scope([recipe.criterion(u) for u in units], units, 0.5)
        removal.cut(model, graph, units, keep, lambda: x)
        assert difference(held, model(x)) < 1e-9


def test_lots_follow_from_the_seed():
    first, again = (ramp(by="random")[4].pressure.lots for _ in range(2))
    assert all(torch.equal(first[path], again[path]) for path in first)
    with pytest.raises(ValueError, match="by is 'odd': expected one of l1, activation, random"):
        METHODS["while_training"](Settings(), by="odd")
    assert plan().each == 1


def test_however_late_something_goes_while_there_is_training_left_to_see_it():
    """Otherwise all of it would go in the cut, and the training be that of the dense network."""
    model, _, _, x, recipe = ramp(steps=6, start=0.95, over=0.5)
    assert list(stepped(recipe.pressure, model, x, 6)) == [0, 0, 0, 0, 0, 32]
    for own in ({"start": 1.0}, {"start": -0.1}, {"over": 0.0}, {"over": 1.5}):
        with pytest.raises(ValueError, match="expected 0 to below 1, and above 0 to 1, of the epochs"):
            METHODS["while_training"](Settings(), **own)


def test_all_is_gone_by_the_end_where_the_ramp_would_be_longer_than_what_is_left():
    model, _, _, x, recipe = ramp(steps=8, start=0.75, over=0.5)  # two epochs are left for a ramp of four
    assert list(stepped(recipe.pressure, model, x, 8)) == [0, 0, 0, 0, 0, 0, 16, 32]
