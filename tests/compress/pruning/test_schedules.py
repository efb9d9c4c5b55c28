"""When methods begin: on a trained network, or on random weights, over the whole table."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from kerf.compress.command.running import explain
from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import run as running
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget, Phase, dense_epochs
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import train
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.train import Metrics, Optim
from kerf.compress.units.weights import Weight

# Whose papers train the network under the method from its first step, or the pruned one anew (dmcp, uniform_scaling
# search or choose widths first); all others are defined on trained networks.
FROM_SCRATCH = {"bwcp", "dmcp", "dsc1", "dsc2", "frs", "rni", "slimming", "uniform_scaling", "while_training"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_begin_on_the_network_that_they_are_defined_on(name):
    phases = list(METHODS[name](Settings(by_macs=True)).schedule(Budget(0.5, 10, 8)))
    assert dense_epochs(phases) == (0 if name in FROM_SCRATCH else 10)
    assert sum(phase.epochs for phase in phases) == (10 if name == "dense" else 18)


@pytest.mark.parametrize("name", METHODS)
def test_with_trained_weights_nothing_is_trained_first(name):
    phases = list(METHODS[name](Settings(by_macs=True)).schedule(Budget(0.5, 0, 8)))
    first = next((p for p in phases if p.pressure or p.sparsity), None)
    assert dense_epochs(phases) == (8 if name == "dense" else 0)
    assert sum(phase.epochs for phase in phases) == 8
    assert first or name == "dense"


@pytest.mark.parametrize("name", METHODS)
def test_the_dense_network_is_only_spoken_of_where_it_is_trained(name):
    said: list[str] = []
    chosen = METHODS[name](Settings(by_macs=True))
    job = SimpleNamespace(method=name, recipe=chosen, budget=Budget(0.5, 10, 8), grids={})
    explain(job, SimpleNamespace(say=said.append))
    if name == "dense":
        assert not said
    elif name in FROM_SCRATCH:
        assert said == [f"no --pretrained_model: method {name} trains from random weights"]
    else:
        assert said == ["no --pretrained_model: training the dense network first, 10 epochs, then pruning it"]


def test_epochs_behind_the_first_pressure_are_not_dense():
    plain = Phase("dense", 3, 0.0)
    pressed, cut = dataclasses.replace(plain, pressure=True), dataclasses.replace(plain, sparsity=0.5)
    assert dense_epochs([plain, plain, cut, plain]) == 6
    assert dense_epochs([plain, pressed, plain]) == 3
    assert dense_epochs([cut, plain]) == 0


@pytest.fixture(scope="module")
def data():
    return open_data("synthetic", Options(train_batch=16, subset=32, image_size=16))


def network():
    torch.manual_seed(0)
    model = create("resnet20", 10, 16).eval()
    return model, DependencyGraph.trace(model, torch.zeros(1, 3, 16, 16))


def test_layer_by_layer_ends_where_all_at_once_does(data):
    """Nine layers in nine turns: one more is narrow after each, and all of them as with one turn in the end."""
    widths = []
    for turns in (1, 9):
        model, graph = network()
        seen = []
        chosen = METHODS["hrank"](Settings(), images=16, turns=turns)
        outcome = run(
            model, chosen, data, Budget(0.5, 0, 9), 0, graph=graph,
            on_history=lambda _, model=model, seen=seen: seen.append(
                [getattr(model, f"layer{i}")[j].conv1.out_channels for i in (1, 2, 3) for j in range(3)]
            ),
        )  # fmt: skip
        widths.append({name: len(kept) for name, kept in outcome.kept.items()})
    assert widths[0] == widths[1]
    dense = [16] * 3 + [32] * 3 + [64] * 3
    assert seen == [[w // 2 if i <= turn else w for i, w in enumerate(dense)] for turn in range(9)]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_guarded_phase_keeps_what_it_begins_with_if_that_is_best(guarded, data, monkeypatch):
    falling = iter(range(100, 0, -1))
    for module in (running, train):  # every network that is looked at is worse than the one before
        monkeypatch.setattr(module, "evaluate", lambda *_: Metrics(next(falling), 0.0, 1.0, 1))
    model, graph = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe(Weight(), lambda u: u.sizes, schedule=lambda _: iter([Phase("fine-tune", 1, 0.0, guarded=guarded)]))
    run(model, recipe, data, Budget(0.0, 0, 1), 0, graph=graph, optim=Optim(LearningRate(0.05, warmup=0)))
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters()) == guarded
