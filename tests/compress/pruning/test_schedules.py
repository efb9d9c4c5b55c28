"""When methods begin: on a trained network, or on random weights, over the whole table."""

import dataclasses
from types import SimpleNamespace

import pytest

from kerf.compress.command.running import explain
from kerf.compress.methods import METHODS
from kerf.compress.pruning.schedules import Budget, Phase, dense_epochs
from kerf.compress.pruning.settings import Settings

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
