"""What methods say of themselves in the log, in states that are known: a line that is wrong misleads whoever waits."""

import re

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan
from tests.helpers.attaching import BY_MACS, traced

CHANNELS = 336  # inside the blocks of a resnet20: 3 · (16 + 32 + 64)
WEIGHTS = 267_264  # of its convolutions but the first


def told(name: str, settings: Settings = BY_MACS, steps: int = 100, each: int = 10, **own):
    model, graph, x = traced("resnet20")
    chosen = METHODS[name](settings, **own)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, Plan(steps, lambda _: 0.01, 0.5, each=each))
    return model, units, chosen.pressure


def nothing(*_):
    return torch.zeros(()), torch.zeros(())


def halves(units) -> list[torch.Tensor]:
    return [torch.arange(u.count) % 2 == 0 for u in units]


@pytest.mark.parametrize(("name", "whole"), [("dsc1", WEIGHTS), ("dsc2", CHANNELS)])
def test_dsc(name, whole):
    model, _, pressure = told(name, Settings(), rounds=10, mu=0.0)
    assert pressure.report(model) == f"round 0 of 10, {whole} of {whole} are kept"
    pressure.loss(model, None, None, nothing, 30)  # (10 − 6) / 10 of the way are left
    assert pressure.report(model) == f"round 3 of 10, {int(whole // 2 + whole // 2 * 0.4)} of {whole} are kept"


def test_gates():
    model, units, pressure = told("gate_decorator", steps=1000)
    pressure.pruned = 7
    pressure.masks.keep(halves(units))
    assert pressure.report(model) == f"7 of 150 ticks, {CHANNELS // 2} of {CHANNELS} channels left"


def test_frs():
    model, units, pressure = told("frs", Settings(), steps=200)  # 20 epochs, of which 15: every second
    pressure.done = 3
    pressure.masks.keep(halves(units))
    assert pressure.report(model) == f"3 of 7 removals, {CHANNELS // 2} of {CHANNELS} channels left"


def test_while_training():
    model, units, pressure = told("while_training")
    assert pressure.report(model) == f"gone: 0 of {CHANNELS} channels"
    pressure.masks = halves(units)
    assert pressure.report(model) == f"gone: {CHANNELS // 2} of {CHANNELS} channels"


def test_play_and_prune():
    model, units, pressure = told("play_and_prune", tolerance=0.02)
    pressure.baseline, pressure.accuracy = 0.9, 0.885
    pressure.masks.keep(halves(units))
    assert pressure.report(model) == f"{CHANNELS // 2} of {CHANNELS} channels left, 1.50 of 2 points lost"


def test_movement():
    model, _, pressure = told("movement", Settings())
    assert pressure.report(model) == f"{WEIGHTS} of {WEIGHTS} units are kept (100.0%)"
    for keep in pressure.keep:
        keep[: len(keep) // 4] = False
    assert pressure.report(model) == f"{WEIGHTS * 3 // 4} of {WEIGHTS} units are kept (75.0%)"


def test_growing():
    model, units, pressure = told("greg2", Settings())
    pressure.level = 0.005
    assert pressure.report(model) == "penalty 5.0e-03"
    pressure._choose()
    with torch.no_grad():
        for unit, goes in zip(units, pressure.goes):
            weight = model.get_parameter(unit.channels.makers[0])
            weight.fill_(0.6)
            weight[goes] = 0.2
    assert pressure.report(model) == "penalty 5.0e-03, kept weights 3.0 times those that go"


def test_selection():
    model, _, pressure = told("c2s2", Settings(), steps=900)
    assert pressure.report(model) == f"turn 1 of 9, gates leave {CHANNELS} of {CHANNELS} channels, push 0.0e+00"
    pressure.turn, pressure.strength, pressure.open_to[8] = 4, 0.02, 64.0
    with torch.no_grad():
        pressure.r[8][:10] = 0.0
    assert pressure.report(model) == f"turn 5 of 9, gates leave {CHANNELS - 10} of {CHANNELS} channels, push 2.0e-02"


def test_markov_chains():
    model, _, pressure = told("dmcp")
    with torch.no_grad():
        for alpha in pressure.alphas:
            alpha.fill_(100.0)  # every chance is one: the whole network, twice the target
    assert pressure.report(model) == "expected MACs 2.000 of the target"


def test_compactors():
    model, units, pressure = told("resrep", steps=2000)
    told_first = pressure.report(model)
    assert told_first == f"masked 0 of {CHANNELS} channels, MACs 1.000, largest masked row 0.0e+00"
    for mask, kept in zip(pressure.masks, halves(units)):
        mask.copy_(kept)
    with torch.no_grad():
        pressure.q[2][1] *= 3
    left = units[0].widths.macs({u.path: u.count // 2 for u in units}) / units[0].widths.dense
    assert pressure.report(model) == (
        f"masked {CHANNELS // 2} of {CHANNELS} channels, MACs {left:.3f}, largest masked row 3.0e+00"
    )


def test_whitening():
    model, _, pressure = told("bwcp", Settings())
    with torch.no_grad():
        for norm in pressure.norms.values():
            norm.whitening.copy_(torch.eye(norm.size).expand(norm.whitening.shape))
            norm.bias.fill_(1.0)
            norm.bias[: len(norm.bias) // 4] = -1.0
    assert pressure.report(model) == f"chance above 1/2 for {CHANNELS * 3 // 4} of {CHANNELS} channels"


def test_patterns():
    model, _, pressure = told("pconv", Settings(), steps=600)
    pressure.changed = 0.125
    with torch.no_grad():
        for constraint in pressure.constraints:
            constraint.z = constraint.weight.detach().clone()
        pressure.constraints[3].z.mul_(0.75)
    assert pressure.report(model) == (
        "kernels that changed pattern in the last round 12.5%, farthest layer from its set 0.25"
    )


def test_clusters():
    model, units, pressure = told("csgd", Settings())
    assert re.fullmatch(
        r"clusters apart by at most: kernels \d\.\de[+-]\d\d, vectors \S+, statistics \S+", pressure.report(model)
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.fill_(2.0)
        unit = next(u for u in units if len(pressure.into[u.path].unique()) < u.count)
        into = pressure.into[unit.path]
        other = next(i for i, first in enumerate(into.tolist()) if first != i)
        norm = next(p for p, axis in unit.channels.places if axis == 0 and model.get_parameter(p).ndim == 1)
        model.get_parameter(norm)[unit.channels.positions((norm, 0))[other]] = 3.0
    tensor = model.get_parameter(norm).detach()
    assert pressure.deviation(model)["vectors"] == pytest.approx(float(1 / tensor.square().mean().sqrt()), rel=1e-6)
    assert pressure.deviation(model)["statistics"] == 0
