"""Averages of weights over steps: what is evaluated, kept, and gone on with after a stop."""

import copy

import pytest
import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria
from kerf.compress.pruning import run as loop
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.schedules import Budget
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Pressure
from kerf.compress.training.train import Optim, State, fit
from kerf.compress.units.weights import OneByN

RATE = LearningRate(0.05, 2, warmup=0, policy="fixed")


def data():
    return open_data("synthetic", Options(train_batch=16, subset=64))


def network():
    torch.manual_seed(0)
    return create("resnet20", 10, 32)


def test_weights_and_statistics_are_averaged_over_the_steps():
    model, steps = network(), []
    state = fit(model, data(), Optim(RATE, ema=0.5), after_step=lambda: steps.append(copy.deepcopy(model.state_dict())))
    for name in ("conv1.weight", "bn1.running_mean", "linear.bias"):
        wanted = steps[0][name]
        for step in steps[1:]:
            wanted = wanted + 0.5 * (step[name] - wanted)
        torch.testing.assert_close(state.average[name], wanted)
    best = max(range(2), key=lambda e: (state.history[e]["val_top1"], -state.history[e]["val_loss"]))
    if best == 1:  # what is kept is the average, not the last step's weights
        assert torch.equal(model.state_dict()["conv1.weight"], state.average["conv1.weight"])
    assert not torch.equal(model.state_dict()["conv1.weight"], steps[-1]["conv1.weight"])


def test_without_it_there_is_none_and_under_a_pressure_either():
    model = network()
    assert not fit(model, data(), Optim(RATE)).average
    assert not fit(model, data(), Optim(RATE, ema=0.5), pressure=Pressure()).average


class Stopped(Exception):
    pass


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_fit_that_was_stopped_goes_on_with_the_same_average(keep_best):
    optim = Optim(RATE, ema=0.9)
    whole, half = network(), network()
    expected = fit(whole, data(), optim, keep_best=keep_best)
    saved: list[State] = []

    def stop(state: State) -> None:
        saved.append(copy.deepcopy(State(state.epoch, state.momentum, state.best, state.best_score, state.history)))
        saved[-1].average = copy.deepcopy(state.average)
        raise Stopped

    with pytest.raises(Stopped):
        fit(half, data(), optim, keep_best=keep_best, on_epoch=stop)
    found = fit(half, data(), optim, keep_best=keep_best, state=saved[0])
    assert found.average.keys() == expected.average.keys()
    for name, value in expected.average.items():
        assert torch.equal(found.average[name], value), name
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in half.state_dict().items())


def test_zeros_stay_zero_in_the_average_and_a_run_saves_it(tmp_path):
    model = network()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32))
    recipe, budget = Recipe(OneByN(4), criteria.l1), Budget(0.5, epochs=2)
    optim = Optim(RATE, ema=0.5)
    outcome = loop.run(model, recipe, data(), budget, 0, graph=graph, optim=optim, file=tmp_path / "last.safetensors")
    assert not any(bool(model.get_parameter(path)[~mask].any()) for path, mask in outcome.masks.items())
    again = network()
    loop.run(
        again, recipe, data(), budget, 0, graph=DependencyGraph.trace(again, torch.zeros(1, 3, 32, 32)), optim=optim,
        file=tmp_path / "last.safetensors", resume=True,
    )  # fmt: skip
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
