"""Contracts over the whole table of methods: a new row is tested by being there."""

import copy

import pytest
import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import scopes
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.train import Optim
from kerf.compress.units.channels import Channel
from kerf.compress.units.weights import Filter, OneByN, Weight

EXAMPLE = torch.zeros(1, 3, 32, 32)
SAMPLE = [(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4))]


def zeroes(name: str) -> bool:  # test_channel_methods.py has the others
    return not isinstance(METHODS[name](Settings(by_macs=True)).granularity, Channel) and name != "dense"


PRUNING = [name for name in METHODS if zeroes(name)]
BLOCKS = ["one_by_n", "random_block"]
OWN_TESTS = ("darb", "pconv", "subp")  # of what goes: by rules of their own


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    return model, DependencyGraph.trace(model, EXAMPLE)


def pruned(network, name, sparsity, **settings):
    model, graph = copy.deepcopy(network[0]), network[1]
    recipe = METHODS[name](Settings(**{"n": 4, **settings}))
    outcome = prune(model, recipe, graph, EXAMPLE, sparsity, lambda: iter(SAMPLE))
    return model, outcome.masks


@pytest.mark.parametrize("rearrange", [False, True])
@pytest.mark.parametrize("name", ["dense", *PRUNING])
def test_keeping_everything_keeps_the_function(network, name, rearrange):
    model, masks = pruned(network, name, 0.0, rearrange=rearrange)
    assert all(bool(mask.all()) for mask in masks.values())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(x), network[0](x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in PRUNING if name not in OWN_TESTS])
def test_each_layer_loses_what_was_asked_give_or_take_a_unit(network, name, sparsity):
    model, masks = pruned(network, name, sparsity)
    parameters = dict(model.named_parameters())
    assert "conv1.weight" not in masks  # the stem
    assert "linear.weight" not in masks  # without --full
    recipe = METHODS[name](Settings(n=4))
    sizes = {OneByN: lambda w: 4 * w[0, 0].numel(), Filter: lambda w: w[0].numel(), Weight: lambda w: 1}
    weights = [(path, parameters[path]) for path in masks]
    units = [sizes[type(recipe.granularity)](weight) for _, weight in weights]
    if recipe.scope is not scopes.local:
        weights, units = [("all layers", torch.cat([weight.flatten() for _, weight in weights]))], [max(units)]
    for (path, weight), unit in zip(weights, units):
        asked = sparsity * weight.numel()
        assert asked - unit < int((weight == 0).sum()) <= asked + 1e-6, path
    assert all(torch.equal(parameters[path] != 0, mask) for path, mask in masks.items())
    assert all(bool(mask.any()) for mask in masks.values())  # no layer is empty


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("n", [2, 4, 16])
def test_zeros_are_blocks_of_n_kernels_at_one_input_channel(network, name, n):
    _, masks = pruned(network, name, 0.5, n=n, rearrange=True)
    for path, mask in masks.items():
        blocks = mask.unfold(0, n, n).flatten(2)  # (O / n, I, k * k * n)
        assert torch.equal(blocks.any(-1), blocks.all(-1)), path


def test_the_smallest_blocks_go(network):
    _, masks = pruned(network, "one_by_n", 0.5)
    for path, mask in masks.items():
        before = dict(network[0].named_parameters())[path].detach()
        scores = before.abs().unfold(0, 4, 4).flatten(2).sum(-1)
        kept = mask.unfold(0, 4, 4).flatten(2).all(-1)
        assert scores[~kept].max() <= scores[kept].min(), path


def test_rearranging_keeps_more_of_the_weight(network):
    kept = []
    for rearrange in (False, True):
        model, masks = pruned(network, "one_by_n", 0.5, n=8, rearrange=rearrange)
        parameters = dict(model.named_parameters())
        kept.append(sum(float(parameters[path].detach().abs().sum()) for path in masks))
    assert kept[1] > kept[0]


@pytest.mark.parametrize("name", PRUNING)
def test_full_prunes_the_classifier_too(network, name):
    assert "linear.weight" in pruned(network, name, 0.5, full=True)[1]


def test_a_random_draw_follows_from_the_seed(network):
    first, again, other = (pruned(network, "random_block", 0.5, seed=seed)[1] for seed in (1, 1, 2))
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert any(not torch.equal(first[path], other[path]) for path in first)


@pytest.mark.parametrize("name", PRUNING)
def test_the_same_weights_go_every_time(network, name):
    first, again = (pruned(network, name, 0.5)[1] for _ in range(2))
    assert all(torch.equal(first[path], again[path]) for path in first)


@pytest.mark.parametrize("name", ["dense", *PRUNING])
def test_fine_tuning_leaves_the_zeros_alone(network, name):
    model = copy.deepcopy(network[0])
    before = {path: p.detach().clone() for path, p in model.named_parameters()}
    data = open_data("synthetic", Options(train_batch=16, subset=32))
    optim = Optim(LearningRate(0.05))
    recipe = METHODS[name](Settings(n=4, rearrange=True))
    outcome = run(model, recipe, data, Budget(0.5, 0, 1), 0, graph=network[1], optim=optim)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[path] != 0, mask) for path, mask in outcome.masks.items())
    assert bool(outcome.masks) == (name != "dense")
    assert not torch.equal(after["linear.weight"], before["linear.weight"])
    assert len(outcome.history) == 1


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "images" in method.numbers])
def test_criteria_that_would_see_nothing_are_refused(name):
    """prunenet would call all channels equal, and cut the first ones."""
    with pytest.raises(ValueError, match="images is 0: expected at least 1"):
        METHODS[name](Settings(by_macs=True), images=0)
