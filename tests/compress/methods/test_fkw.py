"""FKW: an example worked by hand, round trips, and the convolution that its arrays say."""

import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kerf.compress.methods import fkw
from kerf.compress.methods.pconv import T_SHAPES, patterns
from kerf.compress.training import checkpoint

FOUR = patterns([[3, 4, 5, 7], [1, 4, 5, 7], [1, 3, 4, 7], [1, 3, 4, 5]])
KERNELS = [(0, 0, 1), (0, 2, 0), (1, 1, 2), (2, 0, 0), (2, 1, 0), (2, 2, 3)]  # filter, channel, pattern


def example() -> torch.Tensor:
    weight = torch.zeros(3, 3, 9)
    for number, (f, c, p) in enumerate(KERNELS):
        weight[f, c, FOUR[p]] = 10.0 * number + torch.arange(1, 5)
    return weight.view(3, 3, 3, 3)


def random_layer(filters: int, inputs: int, seed: int, size: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    library = T_SHAPES if size == 3 else torch.ones(1, size * size, dtype=torch.bool)
    weight = torch.randn(filters, inputs, size * size) * library[torch.randint(len(library), (filters, inputs))]
    weight = weight * (torch.rand(filters, inputs, 1) < 0.6)
    weight[-1, -1] = library[-1].float()
    return weight.view(filters, inputs, size, size)


def test_the_worked_example():
    packed = fkw.pack(example(), FOUR)
    assert packed.reorder.tolist() == [1, 0, 2]
    assert packed.offset.tolist() == [0, 1, 3, 6]
    assert packed.index.tolist() == [1, 2, 0, 0, 1, 2]
    assert packed.stride.tolist() == [[0, 0, 0, 1, 1], [0, 1, 2, 2, 2], [0, 2, 2, 2, 3]]
    assert packed.weight[:8].tolist() == [21, 22, 23, 24, 11, 12, 13, 14]
    assert 81 / len(packed.weight) == 3.375
    assert torch.equal(fkw.unpack(packed), example())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5]), st.integers(0, 99))
def test_what_is_written_is_read_exactly(tmp_path_factory, filters, inputs, size, seed):
    weight = random_layer(filters, inputs, seed, size)
    packed = fkw.pack(weight)
    file = tmp_path_factory.mktemp("fkw") / "layers.fkw"
    fkw.save(file, {"a.weight": packed, "b.weight": fkw.pack(example())})
    read = fkw.load(file)
    assert list(read) == ["a.weight", "b.weight"]
    assert torch.equal(fkw.unpack(read["a.weight"]), weight)
    assert torch.equal(fkw.unpack(read["b.weight"]), example())
    sums = packed.offset.diff()
    assert sums.tolist() == sorted(sums.tolist())  # equal work stands together
    assert torch.equal(packed.stride[:, -1], sums)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0)])
def test_the_arrays_are_a_convolution(stride, padding):
    """In the order in which they stand: filter, run of one pattern, kernel, entry."""
    weight = random_layer(6, 5, 1)
    packed, x = fkw.pack(weight), torch.randn(2, 5, 9, 8)
    wanted = F.conv2d(x, weight, stride=stride, padding=padding)
    x, y, kernel = F.pad(x, [padding] * 4), torch.zeros_like(wanted), 0
    rows, columns = (stride * (n - 1) + 1 for n in wanted.shape[2:])
    for f, runs in zip(packed.reorder.tolist(), packed.stride.tolist()):
        for pattern, (begin, end) in enumerate(pairwise(runs)):
            for _ in range(begin, end):
                values = packed.weight[4 * kernel : 4 * kernel + 4]
                for value, entry in zip(values, packed.patterns[pattern].tolist()):
                    i, j = divmod(entry, 3)
                    channel = x[:, packed.index[kernel]]
                    y[:, f] += value * channel[:, i : i + rows : stride, j : j + columns : stride]
                kernel += 1
    assert kernel == len(packed.index)
    assert torch.allclose(y, wanted, atol=1e-5)


def test_rows_are_read_once():
    assert fkw.row_loads(torch.tensor([3, 4, 5, 7]), 3, 2) == (4, 3)
    assert fkw.row_loads(torch.tensor([1, 4, 5, 7]), 3, 2) == (6, 4)


def test_what_fits_no_pattern_is_refused(tmp_path):
    weight = example()
    weight[0, 1] = 1
    with pytest.raises(ValueError, match="the kernel of filter 0 at input 1 fits none of 4 patterns"):
        fkw.pack(weight, FOUR)
    with pytest.raises(ValueError, match="nothing to store"):
        fkw.pack(torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match=r"patterns of \[3, 4\] entries"):
        fkw.pack(example(), patterns([[1, 3, 4], [1, 3, 4, 5]]))
    checkpoint.save(tmp_path / "dense.safetensors", {"a.weight": weight})
    with pytest.raises(ValueError, match="expected layers in FKW"):
        fkw.load(tmp_path / "dense.safetensors")


@pytest.mark.parametrize("kernel", [(0, 0), (2, 0)])  # the only one of its pattern, and one of several
def test_a_kept_weight_that_is_zero_is_no_pattern_of_its_own(kernel):
    weight = example()
    weight[kernel][1, 1] = 0
    packed = fkw.pack(weight)
    assert len(packed.patterns) == 4
    assert torch.equal(fkw.unpack(packed), weight)


def test_the_script_stores_a_checkpoint(tmp_path, capsys, monkeypatch):
    from scripts import pack_patterns as script

    source, file = tmp_path / "a.safetensors", tmp_path / "a.fkw"
    checkpoint.save(source, {"a.weight": example(), "b.weight": torch.ones(2, 2, 3, 3)})
    monkeypatch.setattr(sys, "argv", ["pack_patterns.py", str(source), str(file)])
    assert script.main() == 0
    assert "1 layers: 324 bytes dense" in capsys.readouterr().out
    assert torch.equal(fkw.unpack(fkw.load(file)["a.weight"]), example())
    checkpoint.save(source, {"b.weight": torch.ones(2, 2, 3, 3)})
    assert script.main() == 2
    assert "error: " in capsys.readouterr().err
