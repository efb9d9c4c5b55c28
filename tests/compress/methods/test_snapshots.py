"""Snapshots of iterative pruning; the numbers of rates and distances are in test_train.py."""

from itertools import pairwise

import pytest
import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.methods.snapshots import Adam
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from tests.helpers.attaching import attached_and_folded, plan


def phases(**budget):
    return list(METHODS["snapshots"](Settings()).schedule(Budget(**budget)))


def test_rounds_remove_equal_shares_of_what_is_left_and_have_equal_parts_of_the_epochs():
    dense, *rounds, distil = phases(sparsity=0.5, dense_epochs=300, epochs=240)
    assert (dense.epochs, dense.sparsity, dense.snapshot) == (300, 0, True)
    assert [p.epochs for p in rounds] == [40] * 5
    left = [1 - p.sparsity for p in (dense, *rounds)]
    assert [after / before for before, after in pairwise(left)] == pytest.approx([0.5**0.2] * 5)
    assert rounds[-1].sparsity == distil.sparsity == 0.5
    assert all(p.snapshot and not p.lessons and not p.pressure for p in rounds)
    assert {(p.rate.base, p.rate.policy, p.rate.warmup) for p in rounds} == {(0.1, "one_cycle", 0)}
    assert (distil.epochs, distil.rate.base, distil.rate.policy) == (40, 1e-3, "one_cycle")
    assert (distil.lessons.weight, distil.lessons.temperature) == (1.0, 5.0)
    # unstructured, as the authors count: 22 %, then 39 % are gone
    assert [p.sparsity for p in phases(sparsity=1 - 0.78**5, epochs=6)[1:3]] == pytest.approx([0.22, 0.3916])


@pytest.mark.parametrize("epochs", range(1, 9))
def test_short_runs_have_fewer_rounds(epochs):
    _, *rounds, distil = phases(epochs=epochs)
    assert len(rounds) == min(5, max(1, epochs - 1))
    assert distil.epochs >= 1
    assert sum(p.epochs for p in (*rounds, distil)) == epochs
    assert epochs == 1 or all(p.epochs for p in rounds)


def test_gradients_become_adams_steps():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    adam = Adam()
    adam.attach(ours, None, (), plan())
    sgd, wanted = torch.optim.SGD(ours.parameters(), lr=0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(5):
        x = torch.randn(6, 4)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().sum().backward()
        adam.edit_gradients(ours, step)
        sgd.step()
        wanted.step()
        again = Adam()  # as if resumed after every step
        again.attach(ours, None, (), plan())
        again.restore(adam.state())
        adam = again
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_attaching_and_folding_keep_the_function():
    _, chosen = attached_and_folded("snapshots", "resnet20")
    assert not chosen.pressure.attached


def test_the_last_network_comes_nearer_to_the_answers_of_all():
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32))
    data = open_data("synthetic", Options(train_batch=16, subset=64))
    chosen = METHODS["snapshots"](Settings(), rounds=2, peak=0.02, rate=0.01)
    outcome = run(model, chosen, data, Budget(0.5, 0, 6), 0, graph=graph)
    assert [row["phase"] for row in outcome.history] == ["cycle 1 of 2"] * 2 + ["cycle 2 of 2"] * 2 + ["distil"] * 2
    assert sum(len(k) for k in outcome.kept.values()) == 168
    # two rounds of a share of 1 − √½ of every layer, each from the smallest filters of what is left
    assert {len(k) for k in outcome.kept.values()} == {8, 16, 32}
    assert outcome.history[-1]["loss"] < outcome.history[-2]["loss"]


@pytest.mark.parametrize("own", [{"rounds": 0}, {"temperature": 0.0}])
def test_numbers_that_make_no_sense_are_refused(own):
    with pytest.raises(ValueError, match="expected at least 1, and above 0"):
        METHODS["snapshots"](Settings(), **own)
