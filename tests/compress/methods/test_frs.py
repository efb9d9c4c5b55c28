"""Feature relevance scores: an example worked by hand."""

import sys

import pytest
import torch
from torch import nn

from kerf.compress.measures.relevance import relevances
from kerf.compress.methods import METHODS
from kerf.compress.methods.frs import class_weights, events, scored
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan
from kerf.compress.units.channels import Channel
from tests.helpers.attaching import BY_MACS, SLOW_DENSENET, attached_and_folded, traced
from tests.helpers.random_networks import difference


def test_classes_that_are_recognised_badly_count_more():
    assert class_weights(torch.tensor([1.0, 0.5])).tolist() == pytest.approx([0.731059, 0.880797], abs=1e-6)
    assert class_weights(torch.tensor([0.8, 0.4])).tolist() == pytest.approx([0.731059, 0.880797], abs=1e-6)
    assert class_weights(torch.tensor([0.3, 0.0])).tolist() == pytest.approx([0.731059, 1.0], abs=1e-6)
    assert class_weights(torch.tensor([0.0, 0.0])).tolist() == [1.0, 1.0]


def test_how_often_channels_go():
    assert len(events(150, 15)) == 10
    assert len(events(150, 21)) == 7
    assert events(4, 2) == [1, 3]
    assert events(5, 2) == [1, 3]


def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    example = torch.zeros(1, 3, 9, 9, dtype=torch.double)
    return model, Channel().split(model, DependencyGraph.trace(model, example), example)


def test_scores_are_means_over_classes_that_are_there():
    model, units = small()
    x, y = torch.randn(5, 3, 9, 9, dtype=torch.double), torch.tensor([0, 2, 2, 0, 2])
    with torch.no_grad():
        right = model(x).argmax(1) == y
    batches = [(x[:3], y[:3]), (x[3:], y[3:]), (x, y)]  # of which five images are to be seen
    scores = scored(model, units, lambda: iter(batches), 5)
    _, found = relevances(model, {"0.weight": model[0].weight}, x, y)
    accuracy = torch.stack([right[y == c].double().mean() for c in (0, 2)])
    by_class = torch.stack([found["0.weight"][y == c].mean(0) for c in (0, 2)])
    wanted = (class_weights(accuracy)[:, None] * by_class).mean(0).abs()
    assert torch.allclose(scores[0], wanted / wanted.norm(), atol=1e-7)
    assert [s.norm().item() for s in scores] == pytest.approx([1, 1], abs=1e-6)


def test_layers_are_compared_by_their_norms(monkeypatch):
    """A layer whose relevances are all a hundred times larger is no more important for that."""
    model, units = small()
    found = {"0.weight": [3.0, 4.0, 0.0, 0.0, 0.0, 0.0], "3.weight": [0.3, 0.4, 1.2, 0.0]}
    x, y = torch.zeros(1, 3, 9, 9, dtype=torch.double), torch.tensor([1])
    for factor in (1.0, 100.0):
        told = {p: torch.tensor([r]).double() * (factor if p == "3.weight" else 1.0) for p, r in found.items()}
        logits = torch.eye(3, dtype=torch.double)[y]
        # by its module: in the package the name is the method's
        monkeypatch.setattr(sys.modules[scored.__module__], "relevances", lambda *_, told=told, z=logits: (z, told))
        scores = scored(model, units, lambda: iter([(x, y)]), 1)
        assert scores[0].tolist() == pytest.approx([0.6, 0.8, 0, 0, 0, 0], abs=1e-6)
        assert scores[1].tolist() == pytest.approx([0.230769, 0.307692, 0.923077, 0], abs=1e-6)
        keep = METHODS["frs"](Settings()).pressure.scope(scores, units, 0.6)
        assert [k.nonzero().flatten().tolist() for k in keep] == [[0, 1], [1, 2]]


def run_through(each: int, epochs: int, sparsity: float = 0.5, settings: Settings = BY_MACS, **own):
    """Counts of channels left after every epoch."""
    model, graph, x = traced("resnet20")
    chosen = METHODS["frs"](settings, **own)
    units = chosen.granularity.split(model, graph, x[:1])
    sample = lambda: iter([(x, torch.tensor([0, 1]))])  # noqa: E731
    pressure = chosen.pressure
    pressure.attach(model, graph, units, Plan(each * epochs, lambda _: 0.1, sparsity, each=each, sample=sample))
    left, before = [], [k.clone() for k in pressure.masks.kept]
    for step in range(each * epochs):
        pressure.edit_gradients(model, step)
        pressure.after_step(model, step)
        assert not any(bool((k & ~b).any()) for k, b in zip(pressure.masks.kept, before))  # none comes back
        before = [k.clone() for k in pressure.masks.kept]
        left.append(sum(int(k.sum()) for k in before))
    return model, graph, units, x, chosen, left


def test_they_go_at_the_ends_of_some_epochs_until_training_has_to_converge():
    total = 3 * (16 + 32 + 64)
    *_, left = run_through(2, 8, settings=Settings(), events=3)
    going = [total - n for n in left]  # N1 = 6, n = 2
    assert going == [0, 0, 0, 56, 56, 56, 56, 112, 112, 112, 112, 168, 168, 168, 168, 168]


def test_masked_is_cut_and_the_last_choice_is_the_one_that_is_cut():
    model, graph, units, x, chosen, _ = run_through(1, 4, sparsity=0.4)
    masks = [k.clone() for k in chosen.pressure.masks.kept]
    with torch.no_grad():
        masked = model(x)
        keep = chosen.scope([chosen.criterion(u) for u in units], units, 0.4)
        assert all(torch.equal(k, m) for k, m in zip(keep, masks))
        recipe.remove(model, chosen, graph, units, keep, lambda: x)
        assert difference(masked, model(x)) < 1e-9


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", SLOW_DENSENET])
def test_attaching_and_folding_keep_the_function(arch):
    model, _ = attached_and_folded("frs", arch)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("own", [{"events": 0}, {"until": 0.0}, {"until": 1.5}])
def test_numbers_that_make_no_sense_are_refused(own):
    with pytest.raises(ValueError, match="expected at least 1, and above 0 to 1"):
        METHODS["frs"](Settings(), **own)
