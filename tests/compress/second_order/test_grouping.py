import itertools

import pytest
import torch
from torch import nn

import kerf
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.second_order.grouping import exchanged, grouped, saliencies
from kerf.compress.second_order.traced import Traced

pytestmark = pytest.mark.quick


def lost(cost: torch.Tensor, order: torch.Tensor, n: int, share: float) -> float:
    blocks = cost[order].view(-1, n, cost.shape[1]).sum(1).flatten().sort().values
    return float(blocks[: int(len(blocks) * share)].sum())


def test_exchanges_find_the_order_that_costs_least():
    """Of all ways to part six filters into two blocks."""
    cost = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).square()
    found = exchanged([cost], torch.arange(6), 3, 0.5, seed=0)
    best = min(lost(cost, torch.tensor(p), 3, 0.5) for p in itertools.permutations(range(6)))
    assert sorted(found.tolist()) == list(range(6))
    assert lost(cost, found, 3, 0.5) == pytest.approx(best)


def test_filters_that_need_the_same_inputs_become_neighbours():
    kind = torch.arange(18) % 4  # 16 filters of four kinds, each with inputs of its own, and two that fill no block
    cost = 0.01 + torch.eye(4)[kind].repeat_interleave(3, 1)
    found = exchanged([cost], torch.arange(18), 4, 0.75, seed=0)
    assert all(len(set(kind[block].tolist())) == 1 for block in found[:16].view(4, 4))
    assert found[16:].tolist() == [16, 17]


def test_of_layers_that_are_added_the_one_with_more_to_lose_decides():
    one, other = torch.eye(2)[torch.arange(8) % 2], torch.eye(2)[torch.arange(8) // 4]
    for large, small, kind in ((one, other, torch.arange(8) % 2), (other, one, torch.arange(8) // 4)):
        found = exchanged([100 * large + 1, small + 0.01], torch.arange(8).roll(1), 4, 0.5, seed=0)
        assert all(len(set(kind[block].tolist())) == 1 for block in found.view(2, 4))


def test_a_saliency_is_what_least_squares_loses_without_the_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)).eval()
    x = torch.randn(8, 3, 6, 6)
    program = Traced(model, DependencyGraph.trace(model, x), x)
    found = saliencies(program, [x], {"1.weight": 1}, 1e-3, lambda layer, fit: torch.ones(6))["1.weight"]
    seen = model[0](x).detach().transpose(0, 1).flatten(1).T.double()  # (positions, 4)
    seen = seen - seen.mean(0)
    gram = seen.T @ seen / len(seen)
    gram += 1e-3 * (1 + 32 * 4 / len(seen)) * gram.diagonal().mean() * torch.eye(4)
    weight = model[1].weight.detach().flatten(1).double()
    rest = [0, 1, 3]
    moved = weight[:, rest] + weight[:, 2:3] @ torch.linalg.solve(gram[rest][:, rest], gram[rest, 2])[None]
    apart = weight.clone()
    apart[:, rest] -= moved
    torch.testing.assert_close(found[:, 2].double(), ((apart @ gram) * apart).sum(1), rtol=1e-3, atol=1e-9)


def test_obs_with_rearrangement_loses_less_than_with_the_order_by_l1():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():  # filters of four kinds, whose sums say nothing of their kinds
        for layer in (model[2], model[4]):
            kind = torch.arange(layer.out_channels) % 4
            near = (torch.arange(32) // 8)[None] == kind[:, None]
            layer.weight *= torch.where(near, 1.0, 0.05)[:, :, None, None]
    x = torch.randn(128, 3, 8, 8)
    before, dense = model(x).detach(), {k: v.clone() for k, v in model.state_dict().items()}
    apart = {}
    for rearrange in (False, True):
        model.load_state_dict(dense)
        data = [(x, torch.zeros(128, dtype=torch.long))]
        kerf.prune(model, "obs", example=x[:1], sparsity=0.7, n=4, rearrange=rearrange, data=data)
        apart[rearrange] = float((model(x).detach() - before).square().sum())
    assert apart[True] < 0.5 * apart[False]


def test_groups_whose_makers_are_not_priced_keep_the_order_they_had():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 4, 4))
    given = {g.name: torch.arange(8).flip(0) for g in graph.groups if not g.fixed}
    found = grouped(graph.groups, {"2.weight": torch.rand(8, 8)}, given, 2, 0.5, 0)
    assert torch.equal(found["0"], given["0"])
    assert sorted(found["2"].tolist()) == list(range(8))
