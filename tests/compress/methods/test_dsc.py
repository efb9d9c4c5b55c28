"""Direct sparsity control: an example worked by hand."""

import pytest
import torch

from kerf.compress.methods import METHODS
from kerf.compress.methods.dsc import left
from kerf.compress.pruning.settings import Settings
from tests.helpers.attaching import plan, traced
from tests.helpers.sweeps import sweep


@pytest.mark.parametrize(
    ("mu", "wanted"),
    [
        (0, [84, 68, 52, 36, 20]),
        (1, [73.333, 54.286, 40, 28.889, 20]),
        (10, [41.333, 29.6, 24.571, 21.778, 20]),
    ],
)
def test_the_schedule(mu, wanted):
    assert [left(e, 100, 20, 10, mu) for e in range(1, 6)] == pytest.approx(wanted, abs=5e-4)
    assert left(0, 100, 20, 10, mu) == 100
    assert [left(e, 100, 20, 10, mu) for e in range(5, 11)] == [20] * 6
    assert all(left(e, 100, 20, 10, mu) >= left(e + 1, 100, 20, 10, mu) for e in range(10))


@pytest.mark.parametrize("pool", sweep(("global", "layer"), quick=("global",)))
@pytest.mark.parametrize("name", ["dsc1", "dsc2"])
def test_exactly_as_many_are_left_in_every_round_and_none_comes_back(name, pool):
    model, graph, x = traced("resnet20")
    chosen = METHODS[name](Settings(), rounds=10, mu=1.0, pool=pool)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.8, 100))
    whole, counts, last = sum(u.count for u in units), [], None
    target = whole - int(0.8 * whole + 1e-9)
    for step in range(100):
        pressure.loss(model, None, None, lambda *_: (torch.zeros(()), None), step)
        if last is not None:
            assert not any(bool((now & ~before).any()) for now, before in zip(pressure.kept, last))
        last = [k.clone() for k in pressure.kept]
        counts.append(sum(int(k.sum()) for k in last))
        pressure.edit_gradients(model, step)
    if pool == "global":
        assert counts[10::10] == [int(left(e, whole, target, 10, 1.0) + 1e-9) for e in range(1, 10)]
        assert counts[50] == target
    else:
        assert counts[50] - target < len(units)
    kept = pressure.scope([pressure.score(u) for u in units], units, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(kept, last))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="pool is 'all'"):
        METHODS["dsc1"](Settings(), pool="all")
    for rounds in (0, 1):  # one round would train the whole network, and cut it in the end
        with pytest.raises(ValueError, match=f"{rounds} rounds"):
            METHODS["dsc2"](Settings(), rounds=rounds)
