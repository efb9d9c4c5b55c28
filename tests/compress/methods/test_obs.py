import copy

import pytest
import torch
from torch import nn

import kerf
from kerf.compress.methods import METHODS
from kerf.compress.methods.obs import fisher_of_outputs, height
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.allocation import Allocation, by_macs
from kerf.compress.pruning.price_curves import price_curves
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import OneByN, Weight
from kerf.errors import BadInput


def small(norm: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
    ).eval()  # fmt: skip


def photographs(count: int) -> torch.Tensor:
    """Pixels that are alike where they are near, as a photograph's are."""
    torch.manual_seed(2)
    coarse = torch.randn(count, 3, 4, 4)
    return nn.functional.interpolate(coarse, size=12, mode="bilinear") + 0.1 * torch.randn(count, 3, 12, 12)


def pruned(method: str, sparsity: float = 0.5, **options: object) -> tuple[nn.Module, kerf.Pruned]:
    model, x = small(), photographs(96)
    data = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(32)]
    found = kerf.prune(model, method, example=x[:1], sparsity=sparsity, n=4, options=options, data=data)
    return model, found


def distance(model: nn.Module) -> float:
    """Relative squared error of the answers to images that no method has seen."""
    x = photographs(160)[96:]
    answer = small()(x).detach()
    return float((model(x).detach() - answer).square().sum() / (answer - answer.mean(0)).square().sum())


@pytest.mark.quick
def test_blocks_that_go_are_zero_and_answers_stay_nearer_than_by_l1():
    model, found = pruned("obs")
    for path, mask in found.masks.items():
        weight = model.get_parameter(path)
        assert not bool(weight[~mask].any())
        assert bool(weight[mask].all())
        rows = mask.flatten(2).all(2)
        for part in rows.split(4):
            assert bool((part == part[0]).all())  # a block row keeps the same inputs
        assert (~mask).float().mean() == pytest.approx(0.5, abs=0.06)
    assert "calibration images" not in found.note
    by_l1, _ = pruned("one_by_n")
    assert distance(model) < 0.5 * distance(by_l1)


@pytest.mark.parametrize("multiple", [1, 4])
def test_block_rows_keep_equally_many_where_asked(multiple: int):
    model, found = pruned("obs", sparsity=0.3, row_multiple=multiple)
    for path, mask in found.masks.items():
        rows = mask.flatten(2).all(2)[::4]
        left = {8: 6, 12: 9}[rows.shape[1]]  # all but 30 %, rounded up
        assert rows.sum(1).unique().tolist() == [-(-left // multiple) * multiple]
        assert bool(model.get_parameter(path)[mask].all())
    assert distance(model) < 0.5 * distance(pruned("one_by_n", sparsity=0.3)[0])


def test_shares_by_layer_are_chosen_in_rows_where_asked():
    model, x = small(), photographs(32)
    recipe = METHODS["obs"](Settings(n=4), row_multiple=1)
    shared = Allocation({"3.weight": 0.5, "6.weight": 0.25}, 0.4).recipe(recipe)
    units = recipe.granularity.split(model, DependencyGraph.trace(model, x[:1]), x[:1])
    scores = [torch.rand(u.count, generator=torch.Generator().manual_seed(0)) for u in units]
    kept = [keep.view(3, -1).sum(1).tolist() for keep in shared.scope(scores, units, 0.4)]
    assert kept == [[4, 4, 4], [9, 9, 9]]


def test_single_weights_cost_less_than_blocks():
    model, found = pruned("obs", granularity="weight")
    blocks, _ = pruned("obs")
    assert distance(model) < distance(blocks)
    assert found.masks["3.weight"].float().mean() == 0.5


def test_nothing_is_removed_from_a_network_that_half_of_is_zero():
    """Zero blocks cost nothing, so they go first: the network computes what it did."""
    model, x = small(), photographs(96)
    with torch.no_grad():
        for layer in (model[3], model[6]):
            layer.weight[:, ::2] = 0
    before = copy.deepcopy(model)
    kerf.prune(model, "obs", example=x[:1], sparsity=0.5, n=4, data=[(x, torch.zeros(96, dtype=torch.long))])
    for layer, was in ((model[3], before[3]), (model[6], before[6])):
        assert torch.equal(layer.weight == 0, was.weight == 0)
    torch.testing.assert_close(model(x), before(x), rtol=1e-2, atol=1e-2)


def test_scores_over_all_layers_are_in_one_currency():
    """A layer whose answer is scaled up, and what reads it down, keeps its place among the others."""
    model, x = small(norm=False), photographs(64)
    recipe = METHODS["obs"](Settings(n=4), images=64)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[6].weight *= 8
        scaled[6].bias *= 8
        scaled[10].weight /= 8
    found = []
    for network in (model, scaled):
        batches = [x]
        fisher = fisher_of_outputs(network, ["6.weight"], batches, 0)["6.weight"]
        found.append(fisher)
    torch.testing.assert_close(found[1] * 64, found[0])
    assert recipe.zeroes_at_once


def test_curves_share_out_multiply_accumulates_over_layers():
    model, x = small(), photographs(96)
    recipe, graph = METHODS["obs"](Settings(n=4), images=96), DependencyGraph.trace(model, x[:1])
    before = copy.deepcopy(model.state_dict())
    sample = lambda: iter([(x, torch.zeros(96, dtype=torch.long))])  # noqa: E731
    curves = price_curves(model, recipe, graph, x[:1], sample)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    units = recipe.granularity.split(model, graph, x[:1])
    for unit in units:
        assert curves.harm(unit.path)[0] == 0
        assert bool((curves.harm(unit.path).diff() >= 0).all())
    shares = by_macs(units, curves, 0.5)
    assert 0.5 <= shares.removed < 0.56
    uniform = sum(float(curves.harm(u.path)[10]) for u in units)
    assert sum(float(curves.harm(p)[round(s * 20)]) for p, s in shares.shares.items()) <= uniform


def test_blocks_of_another_height_are_priced_as_such():
    model, x = small(), photographs(32)
    graph = DependencyGraph.trace(model, x[:1])
    for kind, expected in (
        (OneByN(4, heights={"3.weight": 2}), [(2, 9), (4, 1)]), (OneByN(32), [(12, 9), (10, 1)]),
        (Weight(), [(1, 1), (1, 1)]), (OneByN(1), [(1, 9), (1, 1)]),
    ):  # fmt: skip
        assert [height(unit) for unit in kind.split(model, graph, x[:1])] == expected


def test_fisher_of_outputs_is_the_squared_gradient_of_drawn_labels():
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    x = torch.randn(4000, 3)
    p = model(x).softmax(1)[:, 0].detach()
    found = fisher_of_outputs(model, ["0.weight"], [x], 0)["0.weight"]
    torch.testing.assert_close(found.float(), (p * (1 - p)).mean().expand(2), rtol=0.1, atol=0)  # E[(p − y)²]


def test_what_cannot_be_is_told_before_anything_changes():
    model, x = small(), photographs(8)
    before = copy.deepcopy(model.state_dict())
    data = [(x, torch.zeros(8, dtype=torch.long))]
    for options, words in (
        ({"row_multiple": -1}, "row_multiple -1"), ({"row_multiple": 4, "granularity": "weight"}, "of blocks"),
        ({"granularity": "filter"}, "granularity 'filter'"), ({"images": 0}, "images is 0"),
        ({"damping": 0.0}, "ing 0"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=words):
            kerf.prune(model, "obs", example=x[:1], data=data, options=options)
    with pytest.raises(BadInput, match="looks at images"):
        kerf.prune(model, "obs", example=x[:1])
    x[0, 0, 0, 0] = torch.inf
    with pytest.raises(BadInput, match="NaN or infinity"):
        kerf.prune(model, "obs", example=photographs(1), data=data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_go_and_their_readers_make_up_for_them():
    x = photographs(96)
    data = [(x, torch.zeros(96, dtype=torch.long))]
    found = {}
    for method in ("obs_channels", "l1"):
        model = small()
        made = kerf.prune(model, method, example=x[:1], macs=0.5, data=data if method != "l1" else None)
        assert made.macs <= 0.5 * made.macs_dense
        found[method] = distance(model)
    assert found["obs_channels"] < 0.5 * found["l1"]


def test_a_channel_that_nothing_needs_goes_first_and_the_network_stays_as_it_is():
    model, x = small(), photographs(96)
    with torch.no_grad():
        model[6].weight[:, 3] = 0
    before = model(x).detach()
    skip = ["0", "6"]
    made = kerf.prune(
        model, "obs_channels", example=x[:1], sparsity=1 / 12, data=[(x, x[:, 0, 0, 0].long())], skip=skip
    )
    assert made.kept["3"].tolist() == [0, 1, 2, *range(4, 12)]
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-2, atol=1e-2)


def test_what_went_in_one_round_stays_away_in_the_next():
    """--prune_steps: training between the rounds moves what is left, and the next round begins with what is zero."""
    model, x = small(), photographs(96)
    sample = lambda: ((part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(32))  # noqa: E731
    graph = DependencyGraph.trace(model, x[:1])
    recipe = METHODS["obs"](Settings(n=4), images=96)
    first = prune(model, recipe, graph, x[:1], 0.25, sample).masks
    with torch.no_grad():
        for path, mask in first.items():
            weight = model.get_parameter(path)
            weight.add_(0.2 * weight.std() * torch.randn_like(weight)).mul_(mask)
    second = prune(model, recipe, graph, x[:1], 0.5, sample).masks
    for path, mask in second.items():
        assert not bool((mask & ~first[path]).any()), path
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.06)
        assert float(first[path].float().mean()) == pytest.approx(0.75, abs=0.06)
