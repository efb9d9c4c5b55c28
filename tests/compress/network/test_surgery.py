"""Permutation and zeroing over every architecture in the table."""

import pytest
import torch
from torch import nn

from kerf.compress.models import create
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, scopes
from kerf.compress.units.weights import OneByN
from tests.helpers.archs import archs
from tests.helpers.random_networks import difference, images, randomise


@pytest.fixture(scope="module", params=archs())
def traced(request) -> tuple[nn.Module, DependencyGraph]:
    model = randomise(create(request.param, 10, 32), 3, 32, 32)
    return model, DependencyGraph.trace(model, images(1, 3, 32, 32))


def random_orders(graph: DependencyGraph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {g.name: torch.randperm(g.width, generator=generator) for g in graph.groups if not g.fixed}


def test_permuted_network_computes_the_same(traced):
    model, graph = traced
    x = images(2, 3, 32, 32)
    weights = {name: w.clone() for name, w in model.named_parameters()}
    with torch.no_grad():
        before = model(x)
        surgery.permute(model, graph, random_orders(graph))
        assert difference(before, model(x)) < 1e-9
    moved = [name for name, w in model.named_parameters() if not torch.equal(w, weights[name])]
    head = [g for g in graph.groups if g.fixed][-1].members[-1].path  # the logits' bias
    assert set(weights) - set(moved) == {head}  # every other parameter carries a group that moved


def test_arranged_network_computes_the_same(traced):
    model, graph = traced
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        surgery.permute(model, graph, surgery.l1_orders(model, graph))
        assert difference(before, model(x)) < 1e-9
    # arranged: nothing is left to sort
    assert all(torch.equal(o, torch.arange(len(o))) for o in surgery.l1_orders(model, graph).values())


def test_test_would_notice_a_group_that_is_half_moved(traced):
    """Leave out one member at a time, of a few groups: the function changes, whichever member it was."""
    model, graph = traced
    x = images(1, 3, 32, 32)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        before = model(x)
        free = [g for g in graph.groups if not g.fixed]
        for group in (free[0], free[len(free) // 2], free[-1]):
            for kind in {(m.axis, m.path.rpartition(".")[2]): m for m in group.members}.values():
                rest = tuple(m for m in group.members if m != kind)
                torn = DependencyGraph((type(group)(group.name, group.width, rest),), graph.stems)
                surgery.permute(model, torn, {group.name: torch.arange(group.width).roll(1)})
                assert difference(before, model(x)) > 1e-6, kind
                model.load_state_dict(state)


def test_nearly_all_channels_can_move(traced):
    """Only the colours and the classes are fixed; the groups are few and wide, not channels by themselves."""
    model, graph = traced
    fixed = [g for g in graph.groups if g.fixed]
    assert [g.width for g in fixed] == [3, 10]
    free = [g for g in graph.groups if not g.fixed]
    assert len(free) >= 12
    assert min(g.width for g in free) >= 8
    filters = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
    }
    assert {m.path for g in graph.groups for m in g.members if m.produces} == filters


@pytest.mark.parametrize("n", [4, 16])
def test_blocks_are_zero_where_asked(traced, n):
    """After rearrangement: in every pruned layer floor(blocks / 2) blocks are zero, each n kernels at one input."""
    model, graph = traced
    example = images(1, 3, 32, 32)
    surgery.permute(model, graph, surgery.l1_orders(model, graph))
    dense = {name: w.clone() for name, w in model.named_parameters()}
    units = OneByN(n).split(model, graph, example)
    keep = scopes.local([criteria.l1(u) for u in units], units, 0.5)
    surgery.zero(model, {u.path: u.mask(k) for u, k in zip(units, keep)})
    try:
        for unit in units:
            weight = model.get_parameter(unit.path)
            zeros = total = 0
            for start in range(0, weight.shape[0], n):  # block row by block row: none straddles, the last may be short
                empty = ~weight[start : start + n].flatten(2).transpose(0, 1).flatten(1).any(1)  # (I,)
                kept = ~empty
                assert torch.equal(weight[start : start + n, kept], dense[unit.path][start : start + n, kept])
                zeros, total = zeros + int(empty.sum()), total + len(empty)
            assert (zeros, total) == (unit.count // 2, unit.count)
        assert {u.path for u in units}.isdisjoint(graph.stems)
    finally:
        with torch.no_grad():
            for name, w in model.named_parameters():
                w.copy_(dense[name])


def test_memory_format_and_single_precision():
    model = randomise(create("mobilenet_v2_x0_5", 10, 32), 3, 32, 32).float().to(memory_format=torch.channels_last)
    x = images(2, 3, 32, 32).float()
    graph = DependencyGraph.trace(model, x)
    with torch.no_grad():
        before = model(x)
        surgery.permute(model, graph, surgery.l1_orders(model, graph))
        assert difference(before, model(x)) < 1e-5
    assert model.features[-1][0].weight.is_contiguous(memory_format=torch.channels_last)


def chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))


def test_l1_order_is_falling_and_stable():
    model = chain()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -3.0, 3.0, 2.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1))
        model[2].weight.copy_(torch.arange(8.0).view(2, 4, 1, 1))
    orders = surgery.l1_orders(model, graph)
    assert {name: order.tolist() for name, order in orders.items()} == {"0": [1, 2, 3, 0]}
    surgery.permute(model, graph, orders)
    assert model[0].weight[:, 0, 0, 0].tolist() == [-3, 3, 2, 1]
    assert model[2].weight[:, :, 0, 0].tolist() == [[1, 2, 3, 0], [5, 6, 7, 4]]


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"nowhere": torch.arange(4)}, "no group 'nowhere'"),
        ({"2": torch.tensor([1, 0])}, "group '2' is fixed"),
        ({"0": torch.tensor([0, 1, 1, 3])}, "expected a permutation of 4 channels"),
        ({"0": torch.arange(3)}, "expected a permutation of 4 channels"),
        ({"0": torch.arange(4).flip(0), "2": torch.tensor([1, 0])}, "group '2' is fixed"),
    ],
)
def test_wrong_orders_change_nothing(orders, message):
    model = chain()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 2, 2))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        surgery.permute(model, graph, orders)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_zero_keeps_the_parameter_and_its_gradient_buffers():
    model = chain()
    parameter, pointer = model[0].weight, model[0].weight.data_ptr()
    mask = torch.zeros(4, 3, 1, 1, dtype=torch.bool)
    mask[1] = True
    before = parameter.detach().clone()
    surgery.zero(model, {"0.weight": mask})
    assert model[0].weight is parameter
    assert parameter.data_ptr() == pointer
    assert parameter.requires_grad
    assert torch.equal(parameter, before * mask)
    surgery.zero(model, {})  # nothing masked: nothing to do
