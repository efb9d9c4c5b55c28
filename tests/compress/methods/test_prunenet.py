"""PruneNet-style importance: an example worked by hand."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.prunenet import carried, contributions, shares
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.channels import Channel
from tests.helpers.attaching import BY_MACS, SLOW_DENSENET, attached_and_folded, plan, traced
from tests.helpers.random_networks import images

READER = torch.tensor([[1.0, 0.5], [1.0, 0.5]]).view(2, 2, 1, 1)


def independent(*deviations: float) -> torch.Tensor:
    """(4, 2, 1, 1) of two channels that do not correlate."""
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    return (signs * torch.tensor(deviations)).view(4, 2, 1, 1)


def test_what_a_channel_carries():
    x = independent(1, 2)
    assert carried(READER, x).tolist() == pytest.approx([2, 2])  # a tie, though one varies four times as much
    assert shares([carried(READER, x)])[0].tolist() == pytest.approx([0.5, 0.5])
    assert carried(READER, independent(1, 3)).tolist() == pytest.approx([2, 4.5])
    assert shares([torch.tensor([2, 4.5])])[0].tolist() == pytest.approx([0.3077, 0.6923], abs=5e-5)
    y = nn.functional.conv2d(x + 7, READER)  # the mean does not matter
    assert float(y.var((0, 2, 3), correction=0).sum()) == pytest.approx(float(carried(READER, x + 7).sum()))


def test_a_scale_between_maker_and_reader_does_not_matter():
    x, scale = independent(1, 3), torch.tensor([4.0, 0.1]).view(1, 2, 1, 1)
    assert torch.allclose(carried(READER / scale, x * scale), carried(READER, x))


def test_columns_of_groups_are_one():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 2, 3, 3, generator=generator), torch.randn(5, 4, 7, 7, generator=generator)
    apart = [carried(w, part) for w, part in zip(weight.chunk(2), x.chunk(2, 1))]
    assert torch.allclose(carried(weight, x), apart[0] + apart[1])


def chain() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3)
    ).double()
    example = torch.zeros(1, 3, 9, 9, dtype=torch.double)
    return model, Channel().split(model, DependencyGraph.trace(model, example), example)


def test_readers_see_what_they_read():
    model, units = chain()
    x = images(6, 3, 9, 9)
    logits, found = contributions(model.eval(), units, lambda: model(x))
    assert logits.shape == (6, 3)
    behind = model[:3](x)
    wanted = behind.var((0, 2, 3), correction=0) * model[3].weight.square().sum((0, 2, 3))
    assert torch.allclose(found[0], wanted, rtol=1e-5)
    flat = model[:6](x)
    wanted = (flat.var(0, correction=0) * model[6].weight.square().sum(0)).view(2, 25).sum(1)
    assert torch.allclose(found[1], wanted, rtol=1e-5)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_penalty_is_that_of_the_shares_and_ignores_the_scale_of_a_layer():
    model, graph, x = traced("resnet20")
    chosen = METHODS["prunenet"](BY_MACS, penalty=2.0)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan())
    model.train()  # batch norm undoes the scale of what it reads
    loss, _ = chosen.pressure.loss(model, x, torch.arange(2), lambda m, x, y: (m(x).sum() * 0, None), 0)
    found = shares(contributions(model, units, lambda: model(x))[1])
    assert loss.item() == pytest.approx(2 * sum(s.sqrt().sum().item() for s in found), rel=1e-6)
    loss.backward()
    weight = model.layer1[0].conv2.weight
    gradient, weight = weight.grad, weight.detach()
    assert float(gradient.abs().max()) > 0
    # no gain in making all of it smaller
    assert abs(float((gradient * weight).sum())) < 1e-4 * float(gradient.norm() * weight.norm())
    assert chosen.pressure.rate_factor(0) == pytest.approx(1e-3 / 0.01)


def test_dead_channels_get_no_gradient():
    model, graph, x = traced("resnet20")
    chosen = METHODS["prunenet"](BY_MACS)
    chosen.pressure.attach(model, graph, chosen.granularity.split(model, graph, x[:1]), plan())
    with torch.no_grad():
        model.layer1[0].bn1.weight[0] = 0
        model.layer1[0].bn1.bias[0] = -1
    chosen.pressure.loss(model, x, torch.arange(2), lambda m, x, y: (m(x).sum(), None), 0)[0].backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v3_small", SLOW_DENSENET])
def test_attaching_and_folding_keep_the_function(arch):
    _, chosen = attached_and_folded("prunenet", arch)
    assert not chosen.pressure.attached


@pytest.mark.parametrize("restore", [0, 1])
def test_the_weights_from_before_come_back(restore):
    model, graph, x = traced("resnet20")
    chosen = METHODS["prunenet"](Settings(), restore=restore)
    chosen.pressure.attach(model, graph, chosen.granularity.split(model, graph, x[:1]), plan())
    before = model.linear.bias.detach().clone()
    with torch.no_grad():
        model.linear.bias += 1
    chosen.pressure.release(model)
    assert torch.equal(model.linear.bias, before + (1 - restore))


def test_the_smallest_shares_go_and_the_best_tenth_of_a_layer_last():
    model, graph, x = traced("resnet20")
    chosen = METHODS["prunenet"](Settings())
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.observe(model, graph, units, lambda: iter([(x, torch.arange(2))]))
    scores = [chosen.criterion(u) for u in units]
    assert [int(s.isinf().sum()) for s in scores] == [max(1, u.count // 10) for u in units]
    found = shares(contributions(model, units, lambda: model(x))[1])
    assert all(torch.allclose(s[s.isfinite()], f.double()[s.isfinite()]) for s, f in zip(scores, found))


def test_shares_do_not_depend_on_the_size_of_what_is_shared():
    small = torch.tensor([1.0, 3.0], dtype=torch.double) * 1e-12
    assert shares([small])[0].tolist() == pytest.approx([0.25, 0.75])
    assert shares([torch.zeros(2)])[0].tolist() == [0, 0]
