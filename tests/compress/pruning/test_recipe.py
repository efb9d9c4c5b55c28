"""What a recipe refuses when it is made, and what it derives."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, recipe, removal
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Pressure
from kerf.compress.units.channels import Channel, Foldable
from kerf.compress.units.weights import Filter, OneByN

pytestmark = pytest.mark.quick

EXAMPLE = torch.zeros(1, 3, 8, 8)


def network() -> tuple[nn.Module, DependencyGraph]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    model = nn.Sequential(*layers).eval()
    return model, DependencyGraph.trace(model, EXAMPLE)


def test_removal_follows_from_the_units():
    model, graph = network()
    zeroed = recipe.prune(model, Recipe(OneByN(4), criteria.l1), graph, EXAMPLE, 0.5)
    assert zeroed.masks
    assert not zeroed.kept
    cut = recipe.prune(model, Recipe(Channel(), criteria.l1), graph, EXAMPLE, 0.5)
    assert not cut.masks
    assert model[0].out_channels == 4


@pytest.mark.parametrize(
    ("units", "remove"),
    [(Channel(), removal.zero), (OneByN(4), removal.cut), (Filter(), removal.cut_folded)],
)
def test_a_removal_that_cannot_fit_is_refused_at_once(units, remove):
    with pytest.raises(ValueError, match="cannot remove; leave remove out"):
        Recipe(units, criteria.l1, remove=remove)


@pytest.mark.parametrize("name", METHODS)
def test_what_can_be_reached_is_asked_before_anything_is_seen(name):
    """Whatever a method has to see before it chooses, `check` works on sizes alone."""
    torch.manual_seed(0)

    def block(i: int) -> list[nn.Module]:
        return [nn.Conv2d(i, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]

    model = nn.Sequential(*block(3), *block(16), *block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    graph = DependencyGraph.trace(model.eval(), EXAMPLE)
    chosen = METHODS[name](Settings(by_macs=True, n=4))
    recipe.check(model, chosen, graph, EXAMPLE, 0.4)
    if chosen.cuts:
        with pytest.raises(ValueError, match="of the MACs cannot be reached"):
            recipe.check(model, chosen, graph, EXAMPLE, 0.9999)


class Hiding(Pressure):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def fold(self, model: nn.Module) -> None:
        self.calls.append("fold")
        super().fold(model)


class Staying(Hiding):
    def release(self, model: nn.Module) -> None:
        """Nothing."""


@pytest.mark.parametrize(("kind", "calls"), [(Hiding, ["fold"]), (Staying, [])])
def test_a_pressure_is_released_before_units_go(kind, calls):
    model, graph = network()
    pressure = kind()
    chosen = Recipe(OneByN(4), criteria.l1, pressure=pressure)
    recipe.prune(model, chosen, graph, EXAMPLE, 0.25)
    assert pressure.calls == []  # it was never attached
    pressure.attached = True
    recipe.prune(model, chosen, graph, EXAMPLE, 0.5)
    assert pressure.calls == calls


def test_channels_as_a_user_and_a_method_want_them():
    assert Settings().channels() == Channel()
    assert Settings().channels(residual=True) == Channel(True)
    assert Settings(residual=False).channels(residual=True) == Channel(False)
    assert Settings(residual=True, skip=("a*",)).channels(Foldable, scaled=True) == Foldable(True, True, ("a*",))
    assert replace(Recipe(Channel(), criteria.l1)).cuts
    assert Recipe(OneByN(4), criteria.l1).zeroes_at_once
    assert not METHODS["dsc1"](Settings()).zeroes_at_once


def test_what_code_counts_is_named_eight_layers_and_how_many_more(monkeypatch):
    torch.manual_seed(0)
    layers = [part for _ in range(10) for part in (nn.Conv2d(4, 4, 1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *layers, nn.Conv2d(4, 2, 1)).eval()
    graph = DependencyGraph.trace(model, EXAMPLE)
    units = Channel().split(model, graph, EXAMPLE)
    assert len(units) == 11
    tried: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(
        recipe, "_fails", lambda _, graph, __, keep: tried.append(keep) or (None if graph.note else "odd")
    )
    with pytest.raises(
        ValueError, match=r"counts the channels of 0, 2, 4, 6, 8, 10, 12, 14 and 3 more, which keep all"
    ):
        recipe.check(model, Recipe(Channel(), criteria.l1), graph, EXAMPLE, 0.5)
    alone = tried[1:12]  # one set after the other, without its first channel
    assert [list(keep) for keep in alone] == [[u.path] for u in units]
    assert all(keep[u.path].tolist() == [False, True, True, True] for keep, u in zip(alone, units))


def test_linear_layers_are_spoken_of_where_they_would_be_there():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    graph = DependencyGraph.trace(model, EXAMPLE)
    with pytest.raises(
        ValueError, match=r"Sequential has nothing that this method prunes.*; full=True \(--full\) adds"
    ):
        recipe.check(model, Recipe(OneByN(4), criteria.l1), graph, EXAMPLE, 0.5)
    assert recipe.check(model, Recipe(OneByN(4, full=True), criteria.l1), graph, EXAMPLE, 0.5) is graph


def test_a_target_that_sums_of_layers_would_reach_says_so():
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    narrow = Settings(by_macs=True)
    with pytest.raises(ValueError, match=r"cannot be reached.*; residual=True \(--residual\), which prunes sums"):
        recipe.check(model, METHODS["l1"](narrow), graph, example, 0.98)
    with pytest.raises(ValueError, match=r"cannot be reached[^;]*$"):
        recipe.check(model, METHODS["l1"](narrow), graph, example, 0.99999)
    assert recipe.check(model, METHODS["l1"](replace(narrow, residual=True)), graph, example, 0.98) is graph
