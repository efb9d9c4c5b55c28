"""C2S2-style selection: an example worked by hand, turns, what learns when, and masked ≡ cut."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.c2s2 import binary, cost_aware
from kerf.compress.pruning import recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan
from tests.helpers.archs import archs
from tests.helpers.attaching import BY_MACS, attached, plan, traced
from tests.helpers.random_networks import difference
from tests.helpers.sweeps import sweep


def test_the_binary_copy():
    r = torch.tensor([0.9, 0.2, 0.6], requires_grad=True)
    assert binary(r).tolist() == [1, 0, 1]
    (binary(r) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert r.grad.tolist() == [1, 2, 3]  # straight through, whatever b is
    assert binary(torch.tensor([0.1, 0.3, 0.2])).tolist() == [0, 1, 0]  # a layer keeps its best
    assert binary(torch.tensor([0.5, 0.6])).tolist() == [0, 1]
    assert binary(torch.tensor([0.1, 0.3, 0.2, 0.3]), 3).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(("loss", "share"), [(1.0, 1.0), (1.025, 0.5), (1.05, 0.0), (2.0, 0.0), (0.5, 1.0)])
def test_the_push_ends_where_accuracy_would_suffer(loss, share):
    assert cost_aware(0.1, loss, 1.0, 0.05) == pytest.approx(0.1 * share)


@pytest.mark.parametrize("arch", archs("densenet40"))  # there a norm follows a concatenation
def test_what_gates_drop_can_be_cut(arch):
    model, graph, units, chosen, x, _ = attached("c2s2", arch)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for r in chosen.pressure.r:
            r.copy_(torch.rand(r.shape, generator=generator))
        chosen.pressure.open_to = [float(u.count) for u in units]
        keep = [binary(r.detach(), n).bool() for r, n in zip(chosen.pressure.r, chosen.pressure.least)]
        before = model(x)
        assert not all(k.all() for k in keep)
        recipe.remove(model, chosen, graph, units, keep, lambda: x)
        assert difference(before, model(x)) < 1e-6
    assert not any("selection" in name for name in model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())


def prepared(steps: int = 900, settings: Settings = BY_MACS, sparsity: float = 0.5, **own):
    model, graph, x = traced("resnet20")
    chosen = METHODS["c2s2"](settings, **own)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan(sparsity, steps))
    chosen.pressure.open_to = [float(u.count) for u in units]  # as if the loss had allowed it
    return model.double(), units, chosen.pressure


def test_every_layer_has_its_turn_the_dearest_first():
    _, units, pressure = prepared(900)
    assert pressure.turns == len(units) == 9
    seen = [pressure.at(step) for step in range(900)]
    assert [turn for turn, _ in seen] == sorted(turn for turn, _ in seen)
    for turn in range(9):
        assert [selecting for t, selecting in seen if t == turn] == [True] * 40 + [False] * 60
    opened = [pressure.open(turn) for turn in range(9)]
    assert sorted(i for layers in opened for i in layers) == list(range(9))
    macs = [int(units[i].macs.sum()) for (i,) in opened]
    assert macs == sorted(macs, reverse=True)


@pytest.mark.parametrize("steps", sweep((1, 2, 3, 7, 8, 17, 19), quick=(1, 7, 8)))
def test_few_steps_open_several_layers_at_once(steps):
    _, _, pressure = prepared(steps)
    turns = {pressure.at(step)[0] for step in range(steps)}
    assert sorted(i for turn in turns for i in pressure.open(turn)) == list(range(9))
    assert any(pressure.at(step)[1] for step in range(steps))
    assert all(len(pressure.open(turn)) for turn in turns)


def step(model, pressure, at: int, loss: float = 1.0) -> None:
    def task(*_):
        return torch.tensor(loss, dtype=torch.double), torch.zeros(1)

    total = pressure.loss(model, torch.zeros(1), torch.zeros(1), task, at)[0]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if total.requires_grad:
        total.backward()
    pressure.edit_gradients(model, at)


def learning(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_first_gates_learn_then_weights():
    model, _, pressure = prepared(900)
    (first,), (second,) = pressure.open(0), pressure.open(1)
    weights = {name for name, _ in model.named_parameters() if not name.startswith("selection")}
    step(model, pressure, 0)
    assert learning(model) == {f"selection.{first}"}
    step(model, pressure, 40)
    assert learning(model) == weights
    step(model, pressure, 100)
    assert learning(model) == {f"selection.{second}"}


def test_the_push_alone_takes_a_gate_to_zero_in_its_phase():
    model, _, pressure = prepared(900)
    (first,) = pressure.open(0)
    r = pressure.r[first]
    pressure.cost[first] = 1.0  # of a mean layer
    for at in range(20):
        assert r[1].item() == pytest.approx(1 - at / 40, abs=1e-6)
        step(model, pressure, at)
        with torch.no_grad():
            r.sub_(0.01 * r.grad)  # the plan's rate
        pressure.after_step(model, at)
    assert pressure.widths()[first] == pressure.least[first]  # half of the way: all are at the threshold
    step(model, pressure, 20)
    assert not r.grad.any()


def test_gates_close_one_after_the_other_while_the_loss_allows_it():
    """A phase of 40 steps: of a mean layer a fortieth twice over each, and back where it rises."""
    model, _, pressure = prepared(900)
    (first,) = pressure.open(0)
    pressure.cost[first], pressure.open_to[first] = 1.0, 0.0
    count = len(pressure.r[first])
    with torch.no_grad():
        pressure.r[first].fill_(0.1)  # all would close at once
    seen = []
    for at in range(12):
        step(model, pressure, at, loss=1.0 if at < 8 else 3.0)
        seen.append(pressure.widths()[first])
    assert seen[:8] == [count - int(2 * count / 40 * (i + 1)) for i in range(8)]
    assert seen[-1] > seen[7]
    with torch.no_grad():
        for r in pressure.r:
            r.fill_(0.1)
        pressure.open_to = [float(len(r)) for r in pressure.r]
    before = pressure.open_to[first]
    step(model, pressure, 12)  # the target is met: no more
    assert pressure.open_to[first] == before


def test_gates_learn_at_least_at_a_hundredth():
    model, graph, x = traced("resnet20")
    chosen = METHODS["c2s2"](BY_MACS, sparsity_weight=0.1)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, Plan(10**6, lambda _: 0.002, 0.5))
    assert chosen.pressure.pace(0, 0) == pytest.approx(5.0)


def test_the_loss_is_measured_against_when_the_layer_was_opened():
    model, _, pressure = prepared(900)
    step(model, pressure, 0, loss=1.0)
    assert (pressure.reference, pressure.strength) == (1.0, pytest.approx(0.01))
    step(model, pressure, 1, loss=1.25)  # the running loss is 1.025
    assert pressure.strength == pytest.approx(0.005)
    for at in range(2, 10):
        step(model, pressure, at, loss=1.25)
    assert pressure.strength == 0
    step(model, pressure, 100, loss=1.25)  # another layer's turn
    assert pressure.reference == pressure.running
    assert pressure.strength == pytest.approx(0.01)


@pytest.mark.parametrize("settings", [BY_MACS, Settings()])
def test_layers_are_pushed_until_all_together_meet_the_target(settings):
    """One that the loss lets go gives more than its share: widths are not those of l1, the same everywhere."""
    model, units, pressure = prepared(900, settings, sparsity=0.1)
    (first,) = pressure.open(0)
    r = pressure.r[first]
    assert pressure.least[first] == -(-units[first].count // 10)
    with torch.no_grad():
        r[units[first].count // 2 :] = 0.4  # half of one layer: in the whole network a twentieth
    step(model, pressure, 0)
    assert r.grad.gt(0).all()
    with torch.no_grad():
        for other in pressure.r:
            other[len(other) * 4 // 5 :] = 0.4  # a fifth of all
    step(model, pressure, 1)
    assert not r.grad.any()


def test_a_layer_keeps_its_best_tenth():
    _, units, pressure = prepared(900)
    with torch.no_grad():
        for r in pressure.r:
            r.fill_(0.1)
    assert pressure.widths() == [-(-u.count // 10) for u in units]


def test_dear_layers_are_pushed_harder():
    model, units, pressure = prepared(900)
    macs = torch.tensor([float(u.macs.sum()) for u in units])
    assert macs.max() > 1.3 * macs.min()
    pushes = []
    for turn in range(pressure.turns):
        (layer,) = pressure.open(turn)
        step(model, pressure, 100 * turn)
        pushes.append(float(pressure.r[layer].grad.sum()) / pressure.pace(layer, turn) / float(macs[layer]))
    assert pushes == pytest.approx([pushes[0]] * len(pushes), rel=1e-4)


def test_widths_are_not_those_of_the_same_share_of_every_layer():
    """Where the loss lets one layer go and holds the others, the first ends narrow and they do not."""
    _, units, pressure = prepared(900, Settings(), sparsity=0.06)
    with torch.no_grad():
        pressure.r[0][2:] = 0.1  # 14 of 336 channels
    keep = METHODS["c2s2"](Settings()).scope([pressure.score(u) for u in units], units, 0.04)
    assert [int(k.sum()) for k in keep] == [3, *(u.count for u in units[1:])]


def test_what_gates_have_dropped_goes_first():
    _, units, pressure = prepared()
    with torch.no_grad():
        pressure.r[0].copy_(torch.linspace(0.0, 0.15, 16))  # half stay, as the best of their layer
        pressure.r[1].fill_(0.51)
    scores = [pressure.score(unit) for unit in units[:2]]
    assert scores[0][:8].max() < scores[0][8:].min() < scores[1].min()


def test_equal_gates_go_by_the_size_of_their_filters():
    _model, units, pressure = prepared()
    with torch.no_grad():
        pressure.r[0].fill_(0.6)
        pressure.r[0][3] = 0.601
    score, size = pressure.score(units[0]), units[0].rows().abs().mean(1)
    assert int(score.argmax()) == 3
    others = [i for i in range(16) if i != 3]
    assert score[others].argsort().tolist() == size[others].argsort().tolist()


def test_gates_stay_between_zero_and_one():
    _, _, pressure = prepared()
    with torch.no_grad():
        pressure.r[0].copy_(torch.linspace(-1, 2, 16))
    pressure.after_step(nn.Identity(), 0)
    assert (pressure.r[0].min().item(), pressure.r[0].max().item()) == (0, 1)


def test_bad_numbers_are_one_line():
    with pytest.raises(ValueError, match=r"kappa 0\.0: expected more than 0"):
        METHODS["c2s2"](BY_MACS, kappa=0.0)
