import pytest
import torch
from torch import nn

from kerf.compress.methods.rni import Receding, SigmoidBatchNorm2d, penalty
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training.pressure import Plan
from kerf.compress.training.train import recalibrate
from kerf.compress.units.channels import Channel

IMPORTANCES = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.01, 0.001], dtype=torch.float64)


def slopes(w, b):
    w = w.clone().requires_grad_()
    return torch.autograd.grad(penalty(w, b), w)[0]


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (0.0, [0.1733, 0.2528, 0.2072, 0.1423, 0.0456, 0.0069]),
        (3.0, [0.0022, 0.0102, 0.0791, 0.1663, 0.2496, 0.0759]),
    ],
)
def test_the_penalty_pulls_as_published(b, expected):
    w = IMPORTANCES.logit()
    s = torch.sigmoid(w + b)
    assert slopes(w, b).tolist() == pytest.approx(expected, abs=5.1e-5)
    assert torch.allclose(slopes(w, b), -s * (1 - s) * s.log())


def test_the_penalty_has_the_published_values():
    losses = [penalty(torch.tensor(importance).logit(), 3.0).item() for importance in (0.5, 0.1, 0.01)]
    assert losses == pytest.approx([0.9989, 0.9462, 0.4689], abs=5.1e-5)


def test_the_penalty_pulls_hardest_at_one_place_and_leaves_both_ends_alone():
    w = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    slope = slopes(w, 0.0)
    assert slope.max().item() == pytest.approx(0.2603, abs=5e-5)
    assert w[slope.argmax()].sigmoid().item() == pytest.approx(0.2356, abs=2e-4)
    assert slope.min() > -1e-12
    assert slope[[0, -1]].max() < 1e-10


def attached(model):
    receding = Receding(1e-4, 3.0)
    receding.attach(model, DependencyGraph((), ()), (), Plan(1, lambda _: 0.1, 0.5))
    return receding


@pytest.mark.parametrize("training", [False, True])
def test_folding_leaves_plain_batch_norms_and_the_same_outputs(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    receding = attached(model)
    x = torch.randn(16, 3, 8, 8)
    model.train()(x)  # running statistics of its own
    model.train(training)
    assert isinstance(model[1], SigmoidBatchNorm2d)
    expected, w = model(x), model[1].weight.detach().clone()
    receding.fold(model)
    assert type(model[1]) is type(model[4]) is nn.BatchNorm2d
    assert torch.equal(model[1].weight, w.sigmoid())
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_the_score_is_the_importance_before_and_after_folding():
    model = create("resnet20", 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    receding = attached(model)
    units = Channel().split(model, graph, example)
    weights = [model.get_parameter(f"{graph.norms[u.channels.makers[0]]}.weight").detach().clone() for u in units]
    assert len(units) == 9
    for _ in range(2):
        for unit, w in zip(units, weights):
            assert torch.allclose(receding.score(unit), w.sigmoid())
            assert receding.score(unit).argsort().tolist() == w.argsort().tolist()
        receding.fold(model)
        units = Channel().split(model, graph, example)


def test_statistics_are_taken_anew_with_the_sigmoid_in_place():
    class Images:
        size, names = 8, ("",) * 24

        def epoch(self, epoch, seed, part):
            yield from ((x, None) for x in batches)

    batches = torch.randn(3, 8, 4, 5, 5).unbind()
    model = nn.Sequential(nn.BatchNorm2d(4))
    attached(model)
    recalibrate(model, Images(), 3)
    assert torch.allclose(model[0].running_mean, torch.stack(batches).mean((0, 1, 3, 4)), atol=1e-6)
