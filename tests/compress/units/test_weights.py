"""Granularities, scores and selection against slow, obvious loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, scopes
from kerf.compress.units.weights import Filter, OneByN, Units, Weight

pytestmark = pytest.mark.quick

EXAMPLE = torch.zeros(1, 3, 6, 6)


class Net(nn.Module):
    """Stem, a 3×3 convolution at stride 2 with `outputs` filters, a depthwise, a grouped one and a classifier."""

    def __init__(self, outputs: int = 12):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(8, outputs, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)
        self.point = nn.Conv2d(outputs, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(self.grouped(self.point(self.depthwise(self.conv(self.stem(x))))).mean((2, 3)))


def split(granularity, model: nn.Module) -> dict[str, Units]:
    return {u.path: u for u in granularity.split(model, DependencyGraph.trace(model, EXAMPLE), EXAMPLE)}


@pytest.mark.parametrize("granularity", [OneByN, Weight, Filter])
def test_which_layers(granularity):
    choose = (lambda **k: OneByN(4, **k)) if granularity is OneByN else granularity
    assert list(split(choose(), Net())) == ["conv.weight", "point.weight", "grouped.weight"]
    assert list(split(choose(full=True), Net())) == ["conv.weight", "point.weight", "grouped.weight", "linear.weight"]


@pytest.mark.parametrize("n", [2, 4, 8])  # two groups of four filters
def test_blocks_of_grouped_convolutions_lie_within_a_group(n):
    assert ("grouped.weight" in split(OneByN(n), Net())) is (n < 8)
    assert ("grouped.weight" in split(OneByN(8, heights={"grouped.weight": n}), Net())) is (n < 8)


@pytest.mark.parametrize(("arch", "layers"), [("mobilenet_v1", 13), ("mobilenet_v2", 34), ("mobilenet_v3_small", 40)])
def test_layers_of_the_paper(arch, layers):
    """As many as the authors' lists of rates, less the classifiers: squeeze-excite too, never stem or depthwise."""
    model = create(arch, 10, 32)
    example = torch.zeros(1, 3, 32, 32)
    units = OneByN(4).split(model, DependencyGraph.trace(model, example), example)
    assert len(units) == layers


@settings(max_examples=25, deadline=None)
@given(outputs=st.integers(1, 13), n=st.integers(1, 16), seed=st.integers(0, 99))
def test_one_by_n_against_loops(outputs, n, seed):
    torch.manual_seed(seed)
    model = Net(outputs)
    unit = split(OneByN(n), model)["conv.weight"]
    weight = model.conv.weight.detach()
    rows = -(-outputs // n)
    assert unit.count == rows * 8
    scores, filled = criteria.l1(unit), torch.zeros_like(weight)
    for r in range(rows):
        for c in range(8):
            block = weight[r * n : (r + 1) * n, c]
            i = r * 8 + c
            torch.testing.assert_close(scores[i], block.abs().mean())
            assert int(unit.sizes[i]) == block.numel()
            assert int(unit.macs[i]) == block.numel() * 9  # 6×6 at stride 2 leaves 3×3 positions
            kept = torch.zeros(unit.count, dtype=torch.bool)
            kept[i] = True
            mask = unit.mask(kept)
            assert mask[r * n : (r + 1) * n, c].all()
            assert int(mask.sum()) == block.numel()
            filled += mask
    assert (filled == 1).all()  # blocks cover the weight once
    assert int(unit.macs.sum()) == weight.numel() * 9


@pytest.mark.parametrize("granularity", [OneByN(4, full=True), OneByN(5, full=True), Weight(True), Filter(True)])
def test_rows_are_live_and_masks_fit(granularity):
    model = Net()
    for path, unit in split(granularity, model).items():
        weight = model.get_parameter(path)
        assert unit.rows().shape[0] == unit.count == len(unit.sizes) == len(unit.macs)
        assert int(unit.sizes.sum()) == weight.numel()
        assert not unit.rows().requires_grad
        with torch.no_grad():
            weight.mul_(2)
        torch.testing.assert_close(unit.rows().abs().sum(), weight.detach().abs().sum())
        generator = torch.Generator().manual_seed(0)
        kept = torch.rand(unit.count, generator=generator) > 0.5
        mask = unit.mask(kept)
        assert mask.shape == weight.shape == unit.shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == int(unit.sizes[kept].sum())
        with torch.no_grad():  # pruning the mask's zeros empties exactly the rows that are not kept
            weight.mul_(mask)
        assert torch.equal(unit.rows().any(1), kept)


def test_short_block_is_not_pruned_for_being_short():
    model = Net(outputs=6)
    nn.init.constant_(model.conv.weight, 1.0)
    scores = criteria.l1(split(OneByN(4), model)["conv.weight"])
    assert torch.equal(scores, torch.ones(16))


@pytest.mark.parametrize("n", [0, -4])
def test_impossible_blocks_are_refused(n):
    with pytest.raises(ValueError, match=f"N is {n}; expected at least 1"):
        OneByN(n)


def test_tracing_and_splitting_leave_training_mode():
    model = Net().train()
    split(OneByN(4), model)
    assert all(m.training for m in model.modules())


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=40), percent=st.integers(0, 100))
def test_local_prunes_the_smallest(scores, percent):
    unit = unit_of(len(scores))
    (keep,) = scopes.local([torch.tensor(scores, dtype=torch.float)], [unit], percent / 100)
    pruned = [i for i, kept in enumerate(keep.tolist()) if not kept]
    assert len(pruned) == len(scores) * percent // 100  # exact: 0.29 of 100 is 29
    assert pruned == sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[: len(pruned)])


def unit_of(count: int) -> Units:
    ones = torch.ones(count, dtype=torch.long)
    return Units("conv.weight", count, lambda: ones.view(-1, 1), ones, ones)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        scopes.local([torch.ones(3)], [unit_of(3)], ratio)


def test_scores_that_are_not_numbers_are_refused_by_layer():
    with pytest.raises(ValueError, match=r"conv\.weight: 1 of 3 scores are NaN"):
        scopes.local([torch.tensor([1.0, float("nan"), 0.0])], [unit_of(3)], 0.5)


def test_random_scores_follow_from_the_seed():
    def draw(seed):
        return criteria.random(torch.Generator().manual_seed(seed))(unit_of(50))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    (keep,) = scopes.local([draw(3)], [unit_of(50)], 0.5)
    assert int(keep.sum()) == 25  # without replacement: exactly the share that was asked for
