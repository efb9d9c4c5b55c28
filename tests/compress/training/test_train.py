import copy
import math

import pytest
import torch
from torch import nn

from kerf.compress.data.batches import InMemory
from kerf.compress.data.sets import Data
from kerf.compress.training.learning_rate import POLICIES, LearningRate
from kerf.compress.training.pressure import Plan
from kerf.compress.training.train import Optim, State, distance, evaluate, fit, plan_of

OPTIM = Optim(LearningRate(0.1, epochs=4, warmup=1))


def tiny_net(seed=0):
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 3))


def tiny_data():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (96,), generator=random)
    pixels = torch.randint(100, (96, 3, 8, 8), generator=random, dtype=torch.uint8)
    pixels[torch.arange(96), labels] += 100
    names = tuple(map(str, range(96)))
    train = InMemory(pixels[:64], labels[:64], names[:64], 16, training=True)
    val, test = (InMemory(pixels[part], labels[part], names[part], 16) for part in (slice(64, 80), slice(80, 96)))
    return Data("tiny", 3, 8, train, val, test)


def curve(state):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in state.history]


def test_training_learns_and_keeps_the_best_epoch():
    model, data = tiny_net(), tiny_data()
    before = evaluate(model, data.test)
    state = fit(model, data, OPTIM)
    best = max(state.history, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert evaluate(model, data.val).loss == pytest.approx(best["val_loss"], rel=1e-6)
    assert evaluate(model, data.test).top1 > max(60, before.top1)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_resumed_run_has_the_same_loss_curve(precision):
    """Stopped in the middle of the third epoch, it goes on from the second."""
    optim = Optim(OPTIM.lr, precision=precision)
    whole = fit(tiny_net(), tiny_data(), optim, seed=5)
    kept = {}

    class Killed(Exception):
        pass

    model = tiny_net()
    steps = iter(range(100))

    def die_in_the_third_epoch():
        if next(steps) == 9:  # 4 steps an epoch
            raise Killed

    def keep(state):
        kept["state"], kept["weights"] = copy.deepcopy(state), copy.deepcopy(model.state_dict())

    with pytest.raises(Killed):
        fit(model, tiny_data(), optim, seed=5, after_step=die_in_the_third_epoch, on_epoch=keep)
    assert kept["state"].epoch == 2

    model = tiny_net(seed=99)
    model.load_state_dict(kept["weights"])
    resumed = fit(model, tiny_data(), optim, seed=5, state=kept["state"])
    assert curve(resumed) == curve(whole)
    forgetful = tiny_net(seed=99)
    forgetful.load_state_dict(kept["weights"])
    cold = fit(forgetful, tiny_data(), optim, seed=5, state=State(epoch=2))
    assert curve(cold) != curve(whole)[2:]  # the comparison can tell a lost momentum


def test_evaluation_counts_every_image_once():
    data = tiny_data()
    metrics = evaluate(tiny_net(), data.test)
    assert metrics.images == len(metrics.predictions) == 16
    right = sum(p == int(y) for p, y in zip(metrics.predictions, data.test.labels, strict=True))
    assert metrics.top1 == 100 * right / 16
    assert metrics.top5 == 100  # of three classes


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="lower --lr"):
        fit(tiny_net(), tiny_data(), Optim(LearningRate(1e30, epochs=4, warmup=0)))


def test_training_without_training_images_is_refused():
    data = tiny_data()
    with pytest.raises(ValueError, match="no training images"):
        fit(tiny_net(), Data("tiny", 3, 8, None, None, data.test), OPTIM)


def test_cosine_follows_the_formula():
    """The formula of the 1xN authors, written out again."""
    rate = LearningRate(0.01, epochs=180, warmup=5)
    for epoch, step in ((0, 0), (0, 49), (4, 20), (5, 0), (90, 3), (179, 49)):
        expected = 0.5 * 0.01 * (1 + math.cos(math.pi * (epoch - 5) / 175))
        if epoch < 5:
            expected *= (1 + step + epoch * 50) / (5 * 50)
        assert rate(epoch, step, 50) == pytest.approx(expected, rel=1e-12)


def test_other_policies():
    step = LearningRate(1.0, policy="step", warmup=0)
    assert [step(e, 0, 10) for e in (0, 29, 30, 79, 80, 90)] == pytest.approx([1, 1, 0.1, 0.01, 1e-3, 1e-4])
    milestones = LearningRate(1.0, policy="step", warmup=0, milestones=(50, 100))
    assert [milestones(e, 0, 10) for e in (49, 50, 99, 100)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert LearningRate(1.0, policy="exp", warmup=0)(3, 0, 10) == pytest.approx(0.96**3)
    assert LearningRate(1.0, policy="fixed", warmup=0)(100, 0, 10) == 1.0
    down = LearningRate(1.0, epochs=3, policy="cos_step", warmup=0)
    assert down(2, 9, 10) == pytest.approx(0, abs=1e-12)
    assert down(0, 0, 10) > down(0, 9, 10) > down(1, 0, 10)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("epochs", [1, 2, 5, 7])
def test_short_phases_have_positive_rates(policy, epochs):
    rate = LearningRate(0.1, policy=policy).over(epochs)
    assert all(rate(e, s, 3) >= 0 for e in range(epochs) for s in range(3))
    assert rate(0, 0, 3) > 0


def test_a_policy_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="unknown learning rate policy 'cosine'"):
        LearningRate(policy="cosine")


def test_one_cycle_rises_from_a_tenth_and_ends_at_a_thousandth():
    rate = LearningRate(0.1, 40, warmup=0, policy="one_cycle")
    steps = 391
    trace = [rate(epoch, step, steps) for epoch in range(40) for step in range(steps)]
    assert trace[0] == pytest.approx(0.01, rel=1e-4)
    assert trace[-1] == pytest.approx(1e-4)
    top = trace.index(max(trace))
    assert top + 1 == len(trace) // 10
    assert trace[top] == pytest.approx(0.1)
    assert trace[: top + 1] == sorted(trace[: top + 1])
    assert trace[top:] == sorted(trace[top:], reverse=True)


def test_answers_of_several_teachers():
    """Two teachers, then the student itself; ∂/∂z of mean T² KL is T (p_s − mean p_k)."""
    even, quarters = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]).log()
    assert distance(even, [quarters], 1.0).item() == pytest.approx(0.1308120, abs=1e-6)
    student = torch.zeros(1, 2, requires_grad=True)
    apart = distance(student, [torch.tensor([[2.0, 0]]), torch.tensor([[-1.0, 0]])], 5.0)
    apart.backward()
    assert apart.item() == pytest.approx(0.3072763, abs=1e-6)
    assert student.grad[0].tolist() == pytest.approx([-0.1221342, 0.1221342], abs=1e-6)
    student = torch.tensor([[1.0, 3.0]], requires_grad=True)
    same = distance(student, [student.detach()], 5.0)
    same.backward()
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert student.grad[0].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_a_plan_shows_images_and_measures_without_changing_modes():
    model, data = tiny_net().train(), tiny_data()
    model[0][1].eval()
    plan = plan_of(data, OPTIM, 0.5)
    x, y = next(plan.sample())
    assert torch.equal(x, next(plan.sample())[0])  # from the beginning every time
    assert len(x) == len(y) == 16
    assert plan.accuracy(model) == pytest.approx(evaluate(copy.deepcopy(model), data.val).top1 / 100)
    assert [m.training for m in (model, model[2], model[0][0], model[0][1])] == [True, True, True, False]
    with pytest.raises(ValueError, match="no images here"):
        Plan(1, lambda _: 0.1, 0.5).accuracy(model)
