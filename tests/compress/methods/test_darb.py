"""DARB-style masking: an example worked by hand, budgets."""

import copy

import pytest
import torch

from kerf.compress.methods import METHODS
from kerf.compress.methods.darb import block_max, lengths
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.settings import Settings
from tests.helpers.attaching import traced

ROW = torch.tensor([0.1, -0.9, 0.3, 0.2, 0.5, 0.4, -0.6, 0.05]).abs()


@pytest.mark.parametrize(
    ("length", "kept"), [(1, [*range(8)]), (2, [1, 2, 4, 6]), (4, [1, 6]), (8, [1]), (3, [1, 4, 6])]
)
def test_the_largest_of_each_block_stays(length, kept):
    assert block_max(ROW[None], length)[0].nonzero().flatten().tolist() == kept


def test_of_equal_weights_the_first_stays():
    assert block_max(torch.ones(1, 128), 64)[0].nonzero().flatten().tolist() == [0, 64]


def test_sparse_rows_have_longer_blocks():
    assert lengths(torch.tensor([0.5, 0.125]), 8, 5, 64).tolist() == [2, 8]
    assert lengths(torch.tensor([0.5, 0.5, 0.0]), 8, 17, 8).tolist() == [1, 1, 8]
    with pytest.raises(ValueError, match="1 weights in 2 rows of 8: blocks of 64 leave 2"):
        lengths(torch.tensor([0.5, 0.5]), 8, 1, 64)


def test_kept_energy_is_no_more_than_magnitude_pruning_keeps():
    weight = torch.randn(16, 72, generator=torch.Generator().manual_seed(0)).square()
    for length in (2, 4, 8):
        kept = block_max(weight, length)
        assert float(weight[kept].sum()) <= float(weight.flatten().topk(int(kept.sum())).values.sum()) + 1e-5


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_each_layer_loses_what_was_asked_and_less_than_a_row_more(sparsity):
    model, graph, x = traced("resnet20")
    model = copy.deepcopy(model).float()
    masks = prune(model, METHODS["darb"](Settings()), graph, x[:1].float(), sparsity).masks
    for path, mask in masks.items():
        asked, row = sparsity * mask.numel(), mask[0].numel()
        assert asked - 1e-6 <= int((~mask).sum()) < asked + row, path
        assert torch.equal(model.get_parameter(path) != 0, mask)
        for kept in mask.flatten(1):
            length = 2 ** round(torch.log2(row / kept.sum()).item())
            assert int(kept.sum()) == -(-row // length)
            whole = kept[: row // length * length].view(-1, length)
            assert bool((whole.sum(1) == 1).all())


def test_lengths_are_powers_of_two():
    with pytest.raises(ValueError, match="longest is 48: expected a power of two"):
        METHODS["darb"](Settings(), longest=48)
