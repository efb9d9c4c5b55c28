"""Phases whose ends are kept, and teach later ones."""

import pytest
import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, removal
from kerf.compress.pruning import run as loop
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.schedules import Budget, Lessons, Phase
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.train import Optim
from kerf.compress.units.channels import Channel

RATE = LearningRate(0.03, warmup=0, policy="fixed")


def schedule(budget: Budget):
    yield Phase("dense", 0, 0.0, snapshot=True)
    yield Phase("narrow", 1, 0.25, rate=RATE, snapshot=True)
    yield Phase("narrower", 2, 0.5, lessons=Lessons(1.0, 5.0), snapshot=True)
    yield Phase("alone", 1, 0.5)


RECIPE = Recipe(Channel(), criteria.l1, schedule=schedule, remove=removal.cut)


def run(monkeypatch, **options):
    """What each phase was trained with."""
    seen, fit = {}, loop.fit

    def watched(model, data, optim, **more):
        seen[more["title"]] = optim, more["teachers"]
        return fit(model, data, optim, **more)

    monkeypatch.setattr(loop, "fit", watched)
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = open_data("synthetic", Options(train_batch=16, subset=32))
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32))
    try:
        outcome = loop.run(model, RECIPE, data, Budget(0.5), 0, graph=graph, optim=Optim(distill=0.3), **options)
    finally:
        monkeypatch.setattr(loop, "fit", fit)
    return model, before, seen, outcome


def test_snapshots_teach_where_they_are_asked_to(monkeypatch):
    _, before, seen, _ = run(monkeypatch)
    optim, teachers = seen["narrower"]
    assert (optim.distill, optim.temperature) == (1.0, 5.0)
    assert [len(t.layer1[0].conv1.weight) for t in teachers] == [16, 12]
    assert all(torch.equal(value, before[name]) for name, value in teachers[0].state_dict().items())
    assert not any(m.training for t in teachers for m in t.modules())
    assert not any(p.requires_grad for t in teachers for p in t.parameters())
    optim, teachers = seen["narrow"]  # from the dense network, as the run was asked to
    assert (optim.distill, optim.temperature, optim.lr.base, optim.lr.policy) == (0.3, 4.0, 0.03, "fixed")
    assert len(teachers) == 1
    assert seen["alone"][0].distill == 0.3
    assert seen["alone"][0].lr.base == Optim().lr.base


@pytest.mark.slow  # three trainings each
@pytest.mark.parametrize("at", [1, 2, 3])
def test_they_outlive_a_stop(at, monkeypatch, tmp_path):
    class Stop(Exception):
        pass

    def stop(rows):
        if len(rows) == at:
            raise Stop

    whole, _, wanted, outcome = run(monkeypatch)
    file = tmp_path / "last.safetensors"
    with pytest.raises(Stop):
        run(monkeypatch, file=file, on_history=stop)
    again, _, seen, resumed = run(monkeypatch, file=file, resume=True)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in outcome.history]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    for one, other in zip(wanted["narrower"][1], seen["narrower"][1], strict=True):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
