"""Play-and-Prune-style: an example worked by hand, and what the tolerance allows."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.methods.play_and_prune import candidates, controller, most, norms
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Plan
from kerf.compress.training.train import Optim, evaluate, fit
from tests.helpers.attaching import SLOW_DENSENET, attached_and_folded, traced
from tests.helpers.random_networks import difference


@pytest.mark.parametrize(
    ("accuracy", "wanted"),
    [(0.93, (0.01, 2, 1e-5)), (0.925, (0.005, 1, 5e-6)), (0.92, (0, 0, 0)), (0.9, (0, 0, 0))],
)
def test_threshold_and_penalty_follow_the_slack(accuracy, wanted):
    assert controller(accuracy, 0.93, 0.01, 2.0, 1e-3, 100) == pytest.approx(wanted, abs=1e-9)


def test_the_smallest_share_of_what_is_left_are_candidates():
    norm, alive = torch.tensor([5.0, 1, 2, 2, 4, 3, 6, 7, 8, 9]), torch.ones(10, dtype=torch.bool)
    assert candidates(norm, alive, 0.3).nonzero().flatten().tolist() == [1, 2, 3]
    alive[1] = False
    assert candidates(norm, alive, 0.3).nonzero().flatten().tolist() == [2, 3]
    assert candidates(norm, alive, 0.01).nonzero().flatten().tolist() == [2]


def test_the_largest_that_holds():
    for limit in range(12):
        assert most(11, lambda k, limit=limit: k <= limit) == min(limit, 11)
    assert most(0, lambda k: False) == 0


def game(
    accuracy,
    sparsity: float = 0.5,
    epochs: int = 10,
    settings: Settings = Settings(),  # noqa: B008
    plan_epochs: int | None = None,
    each: int = 2,
    **own,
):
    model, graph, x = traced("resnet20")
    chosen = METHODS["play_and_prune"](settings, **own)
    units = chosen.granularity.split(model, graph, x[:1])
    steps = each * (plan_epochs or epochs)
    plan = Plan(steps, lambda _: 0.1, sparsity, each=each, accuracy=lambda _: accuracy(chosen.pressure))
    chosen.pressure.attach(model, graph, units, plan)
    return model, graph, units, x, chosen


def left(pressure) -> int:
    return sum(int(k.sum()) for k in pressure.masks.kept)


def rounds(model, pressure, epochs: int):
    """Channels left and the candidates that were there, round by round."""
    for step in range(2 * epochs):
        if step % 2 == 0:
            before, chosen = [k.clone() for k in pressure.masks.kept], [c.clone() for c in pressure.chosen]
        pressure.loss(model, None, None, lambda *_: (torch.zeros(()), None), step)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pressure.edit_gradients(model, step)
        pressure.after_step(model, step)
        if step % 2:
            gone = [b & ~k for b, k in zip(before, pressure.masks.kept)]
            assert not any(bool((g & ~c).any()) for g, c in zip(gone, chosen))  # only candidates go
            assert not any(bool((k & ~b).any()) for b, k in zip(before, pressure.masks.kept))  # none comes back
            yield left(pressure)


def test_only_candidates_feel_the_penalty():
    model, _, units, _, chosen = game(lambda _: 0.9, penalty=3e-2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chosen.pressure.edit_gradients(model, 0)
    made = {u.channels.makers[0] for u in units}
    for unit, candidate in zip(units, chosen.pressure.chosen):
        weight = model.get_parameter(unit.channels.makers[0])
        assert int(candidate.sum()) == max(1, unit.count // 10)
        wanted = torch.where(candidate.view(-1, 1, 1, 1), 3e-2 * weight.detach().sign(), 0.0)
        assert torch.allclose(weight.grad, wanted.double())
    assert not any(bool(p.grad.any()) for n, p in model.named_parameters() if n not in made)


def test_candidates_below_the_threshold_go_while_nothing_is_lost():
    model, _, units, _, chosen = game(lambda _: 0.9)
    pressure = chosen.pressure
    seen = list(rounds(model, pressure, 10))
    first = sum(max(1, u.count // 10) for u in units)
    assert seen[0] == 336 - first  # harmless: all candidates
    assert seen == sorted(seen, reverse=True)
    assert pressure.threshold == pytest.approx(pressure.first)  # full slack


def test_candidates_at_the_threshold_stay():
    model, _, units, _, chosen = game(lambda _: 0.9)
    pressure = chosen.pressure
    assert len(list(rounds(model, pressure, 1))) == 1
    found = sorted(n for u, c in zip(units, pressure.chosen) for n in norms(u)[c].tolist())
    pressure.threshold = found[3]
    before = left(pressure)
    list(rounds(model, pressure, 1))
    assert before - left(pressure) == 3
    pressure.threshold = 0.0
    list(rounds(model, pressure, 1))
    assert before - left(pressure) == 3


def test_the_tolerance_is_not_broken():
    """Each channel costs a thousandth: of a hundredth, a tenth goes in the first round, and ten channels in all."""
    model, _, _, _, chosen = game(lambda p: 0.9 - 0.001 * (336 - left(p)), share=0.5)
    pressure = chosen.pressure
    seen = list(rounds(model, pressure, 8))
    assert seen[0] == 335
    assert all(336 - n <= 10 for n in seen)
    assert pressure.baseline == pytest.approx(0.9)
    assert pressure.accuracy >= 0.89 - 1e-9


def test_a_bad_first_round_waits_for_a_better_one():
    """Accuracy is lost to a high rate at first, and comes back: the threshold is looked for then, not before."""
    seen_at_first = iter([0.9, 0.85])  # before any step, and at the end of the first round
    model, _, _, _, chosen = game(lambda _: next(seen_at_first, 0.9))
    seen = list(rounds(model, chosen.pressure, 8))
    _, _, _, _, undisturbed = steady = game(lambda _: 0.9)
    wanted = list(rounds(steady[0], undisturbed.pressure, 7))
    assert seen == [336, *wanted]


def test_at_the_tolerance_nothing_goes_and_nothing_is_penalised():
    worse = iter([0.9, *[0.85] * 1000])
    model, _, _, _, chosen = game(lambda _: next(worse))
    assert list(rounds(model, chosen.pressure, 3)) == [336, 336, 336]
    assert chosen.pressure.penalty == chosen.pressure.threshold == 0
    assert not any(bool(s.any()) for s in chosen.pressure.strength.values())


def test_pruning_stops_at_the_target():
    model, graph, units, x, chosen = game(lambda _: 0.9, sparsity=0.1, share=0.5)
    pressure = chosen.pressure
    assert list(rounds(model, pressure, 3)) == [336 - 33] * 3
    keep = chosen.scope([chosen.criterion(u) for u in units], units, 0.1)
    assert all(torch.equal(k, m) for k, m in zip(keep, pressure.masks.kept))
    with torch.no_grad():
        masked = model(x)
        recipe.remove(model, chosen, graph, units, keep, lambda: x)
        assert difference(masked, model(x)) < 1e-9


def test_what_the_tolerance_has_not_given_stays():
    """Each channel costs a thousandth: ten of the 168 that were asked for may go, and no other goes at the end."""
    model, _, units, _, chosen = game(lambda p: 0.9 - 0.001 * (336 - left(p)), share=0.5)
    list(rounds(model, chosen.pressure, 8))
    keep = chosen.scope([chosen.criterion(u) for u in units], units, 0.5)
    assert 326 <= sum(int(k.sum()) for k in keep) < 336
    assert all(torch.equal(k, m) for k, m in zip(keep, chosen.pressure.masks.kept))


def test_short_phases_have_five_rounds():
    _, _, _, _, chosen = game(lambda _: 0.9, epochs=10)
    assert chosen.pressure.every == 2  # an epoch
    _, _, _, _, chosen = game(lambda _: 0.9, epochs=10, plan_epochs=1, each=100)
    assert chosen.pressure.every == 20


def test_the_last_round_is_over_when_the_phase_is():
    """What is trained, and penalised, behind the last look at the accuracy could break the tolerance unseen."""
    seen: list[int] = []
    now = -1
    model, _, _, _, chosen = game(lambda _: seen.append(now) or 0.9, epochs=2, plan_epochs=3, each=9)
    pressure = chosen.pressure
    assert (pressure.every, pressure.rounds) == (5, 5)  # 27 steps
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for now in range(27):
        pressure.loss(model, None, None, lambda *_: (torch.zeros(()), None), now)
        pressure.edit_gradients(model, now)
        pressure.after_step(model, now)
    assert sorted(set(seen)) == [0, 4, 9, 14, 19, 26]


def test_a_run_ends_within_its_tolerance():
    """Validation accuracy at the end is that of the start, less the tolerance at most; and something is gone."""
    data = open_data("digits", Options(train_batch=32))
    torch.manual_seed(0)
    layers = [[nn.Conv2d(i, o, 3, 2), nn.BatchNorm2d(o), nn.ReLU()] for i, o in ((3, 32), (32, 64))]
    model = nn.Sequential(*layers[0], *layers[1], nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(576, 10))
    with torch.no_grad():  # filters that never answer: on every CPU there is some that may go
        for module in layers[0][:2]:
            for parameter in module.parameters():
                parameter[::4] = 0
    optim = Optim(LearningRate(0.05, warmup=0, policy="cos_step"))
    fit(model, data, replace(optim, lr=optim.lr.over(8)))
    before = evaluate(model, data.val).top1
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, data.image_size, data.image_size))
    chosen = METHODS["play_and_prune"](Settings(), tolerance=0.03)
    outcome = run(model, chosen, data, Budget(0.9, 0, 4), 0, graph=graph, optim=optim)
    widths = {name: len(kept) for name, kept in outcome.kept.items()}
    assert before > 80
    assert evaluate(model, data.val).top1 >= before - 3
    assert sum(widths.values()) < 96


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v3_small", SLOW_DENSENET])
def test_attaching_and_folding_keep_the_function(arch):
    model, _ = attached_and_folded("play_and_prune", arch)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("own", [{"tolerance": 0.0}, {"share": 0.0}, {"share": 1.5}, {"epochs": 0}])
def test_numbers_that_make_no_sense_are_refused(own):
    with pytest.raises(ValueError, match="expected > 0"):
        METHODS["play_and_prune"](Settings(), **own)
