import itertools

import pytest
import torch

from kerf.compress.second_order.curve import prices, rising
from kerf.compress.second_order.elimination import Elimination, eliminate

pytestmark = pytest.mark.quick


def problem(outputs: int, channels: int, taps: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = channels * taps
    x = torch.randn(4 * width, width, generator=generator, dtype=torch.double)
    x = x @ torch.randn(width, width, generator=generator, dtype=torch.double)
    return torch.randn(outputs, width, generator=generator, dtype=torch.double), x.T @ x / len(x)


def error(weight: torch.Tensor, gram: torch.Tensor, gone: set[int], taps: int) -> float:
    """E‖y − ŷ‖² of one block row when those channels are gone and the other weights are the best there are."""
    whole = float(((weight @ gram) * weight).sum())
    s = [i for i in range(weight.shape[1]) if i // taps not in gone]
    if not s:
        return whole
    best = weight @ gram[:, s] @ torch.linalg.inv(gram[s][:, s])
    return whole - float(((best @ gram[s][:, s]) * best).sum())


@pytest.mark.parametrize(("outputs", "channels", "taps", "n"), [(6, 5, 1, 2), (7, 6, 3, 4), (3, 6, 4, 1)])
def test_each_step_removes_the_block_that_brute_force_removes_at_the_same_cost(outputs, channels, taps, n):
    weight, gram = problem(outputs, channels, taps)
    found = eliminate(weight, gram, n, taps)
    assert found.order.shape == (-(-outputs // n), channels)
    for row, order, loss in zip(weight.split(n), found.order.tolist(), found.loss.tolist()):
        gone, before = set[int](), 0.0
        for channel, cost in zip(order, loss):
            after = {c: error(row, gram, gone | {c}, taps) for c in set(range(channels)) - gone}
            assert channel == min(after, key=after.__getitem__)
            assert cost == pytest.approx(after[channel] - before, rel=1e-6)
            gone, before = gone | {channel}, after[channel]


@pytest.mark.parametrize("steps", [48, 5, 1])
def test_all_costs_add_up_to_the_answer_itself_however_many_go_at_a_time(steps):
    weight, gram = problem(10, 12, 2)
    found = eliminate(weight, gram, 4, 2, steps)
    assert found.order.sort(1).values.tolist() == [list(range(12))] * 3
    rows = [float(((part @ gram) * part).sum()) for part in weight.split(4)]
    torch.testing.assert_close(found.loss.sum(1), torch.tensor(rows, dtype=torch.double))


def test_a_channel_that_others_stand_for_costs_nothing():
    x = torch.randn(100, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, :1] + x[:, 1:2]], 1) + 1e-5 * torch.randn(100, 4, dtype=torch.double)
    found = eliminate(torch.ones(4, 4, dtype=torch.double), x.T @ x / 100, 4, 1)
    assert int(found.order[0, 0]) in (0, 1, 3)
    assert float(found.loss[0, 0]) < 1e-8 * float(found.loss.sum())


def test_single_precision_finds_nearly_what_double_finds():
    weight, gram = problem(8, 40, 3)
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    exact, single = eliminate(weight, gram, 4, 3), eliminate(weight.float(), gram.float(), 4, 3)
    torch.testing.assert_close(single.loss.cumsum(1).double(), exact.loss.cumsum(1), rtol=1e-2, atol=0)


def test_prices_cut_block_rows_where_they_cost_least_together():
    loss = torch.tensor([[1.0, 2.0, 6.0, 9.0], [3.0, 4.0, 5.0, 7.0]])
    order = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3]])
    price = prices(Elimination(order, loss))
    curves = loss.cumsum(1)
    curves = torch.cat([torch.zeros(2, 1), curves], 1)
    for count in range(9):
        gone = torch.zeros(8, dtype=torch.bool)
        gone[price.flatten().argsort()[:count]] = True
        rows = gone.view(2, 4).sum(1).tolist()
        least = min(
            float(curves[0, i] + curves[1, j]) for i, j in itertools.product(range(5), repeat=2) if i + j == count
        )
        assert float(curves[0, rows[0]] + curves[1, rows[1]]) == least
        for k, row in enumerate(rows):  # those that were eliminated first
            assert set(gone.view(2, 4)[k].nonzero().flatten().tolist()) == set(order[k, :row].tolist())


def test_prices_never_fall_along_a_row_and_equal_ones_keep_the_order():
    found = Elimination(torch.tensor([[3, 1, 0, 2]]), torch.tensor([[5.0, 1.0, 0.0, 9.0]]))
    price = prices(found)[0, found.order[0]]
    assert bool((price.diff() > 0).all())
    assert price.tolist() == pytest.approx([2, 2, 2, 9], rel=1e-5)
    assert rising(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [[1.0, 2.5, 2.5]]
