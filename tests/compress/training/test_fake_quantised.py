"""Training on integers: zero weights stay zero, weights end on grids, modules end plain."""

import pytest
import torch
from torch import nn

from kerf.compress.data.sets import Options, open_data
from kerf.compress.training.fake_quantised import RATE, EightBits, fine_tune, grids_of, rows
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.quantise import Grid, calibrate, on_grid
from kerf.compress.training.train import Optim, evaluate, plan_of

pytestmark = pytest.mark.quick


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 10))


@pytest.fixture(scope="module")
def data():
    return open_data("synthetic", Options(train_batch=8, subset=64))


def test_zeros_are_held_and_weights_end_on_their_grids(data):
    model, told = network(), []
    with torch.no_grad():
        model[0].weight[:4] = 0
    masks = {"0.weight": model[0].weight != 0}
    before = model[5].weight.clone()
    optim = Optim(LearningRate(0.1, 3, 0, "cos_step"), weight_decay=1e-4)
    fine_tune(
        model, data, optim, 2, masks, seed=0, history=[{"phase": "before"}], on_history=lambda r: told.append([*r])
    )
    assert [row["phase"] for row in told[-1]] == ["before", "int8", "int8"]
    assert told[-1][1]["lr"] == pytest.approx(RATE * 0.1 / 2), "half of the cosine is over"
    assert not model[0].weight[:4].any()
    assert model[0].weight[4:].all(dim=0).any()
    assert not torch.equal(before, model[5].weight)
    for layer in (model[0], model[5]):
        torch.testing.assert_close(on_grid(layer.weight, 8), layer.weight, rtol=0, atol=0)
        assert not layer._forward_pre_hooks
        assert isinstance(layer.weight, nn.Parameter)


def test_while_it_is_attached_the_network_computes_on_integers(data):
    model, pressure = network().eval(), EightBits()
    f32 = evaluate(model, data.val).loss
    pressure.attach(model, None, (), plan_of(data, Optim(), 0.0))
    pressure.begin(model)
    assert {grid.bits for grid in pressure.grids.values()} == {8}
    assert set(pressure.grids) == {"0", "5"}
    assert evaluate(model, data.val).loss == pytest.approx(f32, rel=0.02)
    assert evaluate(model, data.val).loss != f32
    pressure.fold(model)
    assert not pressure.attached
    assert grids_of(rows(pressure.grids)) == pressure.grids


def test_settled_batch_norms_are_calibrated_as_they_will_compute(data):
    """Statistics of another data set: with those of the batch, the last layer's inputs would be of another size."""
    model = network()
    model[1].running_var.fill_(1e4)
    x = [x for x, _ in data.val.epoch(0, 0)]
    unsettled, settled = calibrate(model, x), calibrate(model, x, settled=True)
    assert settled["0"] == unsettled["0"]
    assert settled["5"][0] < unsettled["5"][0] / 10
    assert isinstance(Grid(8, *settled["5"]), Grid)
