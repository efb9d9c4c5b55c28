"""Where networks look: maps that channels' orders do not change, and training that brings them together."""

import copy

import pytest
import torch
from torch import nn

from kerf.compress.models import create
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training.attention import apart, looked, stages
from kerf.compress.training.train import Optim, make_task
from tests.helpers.random_networks import images, randomise

CPU = torch.device("cpu")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


@pytest.mark.quick
def test_maps_are_taken_where_each_resolution_ends():
    model = create("resnet20", 10, 32).eval()
    assert stages(model, torch.randn(1, 3, 32, 32)) == ("layer1", "layer2", "layer3")
    assert stages(small(), torch.randn(1, 3, 8, 8)) == ("1", "3")  # not of the one pixel behind the pool


@pytest.mark.quick
def test_a_map_is_the_sum_of_squares_over_channels_of_length_one():
    model, x = small(), torch.randn(2, 3, 8, 8)
    logits, (first, second) = looked(model, ["1", "3"], x)
    y = model[:2](x)
    wanted = y.square().sum(1).flatten(1)
    torch.testing.assert_close(first, wanted / wanted.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits, model(x))
    assert second.shape == (2, 16)
    zero, one = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(apart([zero, zero], [zero, one])) == 1.0  # the mean of 0 and of 2, the most there can be


def test_the_order_of_channels_does_not_matter():
    model, x = randomise(create("resnet20", 10, 32), 3, 32, 32).eval(), images(2, 3, 32, 32)
    moved = copy.deepcopy(model)
    graph = DependencyGraph.trace(moved, x[:1])
    surgery.permute(moved, graph, surgery.l1_orders(moved, graph))
    assert not torch.equal(moved.conv1.weight, model.conv1.weight)
    places = stages(model, x[:1])
    with torch.no_grad():
        assert float(apart(looked(model, places, x)[1], looked(moved, places, x)[1])) < 1e-8


def test_features_are_learned_without_labels_or_answers():
    """By that term alone, maps come nearer to the teacher's: to look without learning would not do."""
    teacher, model = small().eval(), small()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, y = torch.randn(16, 3, 8, 8), torch.zeros(16, dtype=torch.long)
    task = make_task(Optim(distill_features=1.0), CPU, [teacher])
    plain = make_task(Optim(), CPU, [teacher])
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    extra = []
    for _ in range(30):
        loss = task(model, x, y)[0] - plain(model, x, y)[0]
        extra.append(float(loss.detach()))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    assert 0 < extra[-1] < 0.5 * extra[0]
    assert not any(m._forward_hooks for m in [*model.modules(), *teacher.modules()])
