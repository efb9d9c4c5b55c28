import pytest
import torch

from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network import cost
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings


def test_half_the_widths_of_resnet18():
    """11.68951 to 3.05588 million parameters, as Torch-Pruning's documentation has it."""
    model, example = create("resnet18", 1000, 224).eval(), torch.zeros(1, 3, 224, 224)
    before = cost.count(model, example)
    prune(model, METHODS["uniform_scaling"](Settings()), DependencyGraph.trace(model, example), example, 0.5)
    after = cost.count(model, example)
    assert before.params == 11_689_512
    assert after.params == pytest.approx(3.05588e6, abs=5)
    assert after.macs / before.macs == pytest.approx(0.487 / 1.822, abs=2e-3)


def scaled(weights: str, seed: int = 0):
    torch.manual_seed(1)
    model, example = create("resnet20", 10, 32).eval(), torch.zeros(1, 3, 32, 32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = METHODS["uniform_scaling"](Settings(by_macs=True, seed=seed), weights=weights)
    kept = prune(model, recipe, DependencyGraph.trace(model, example), example, 0.5).kept
    return model, before, kept


@pytest.mark.parametrize("weights", ["new", "l1", "random"])
def test_weights_are_drawn_anew_or_those_that_were_there(weights):
    model, before, kept = scaled(weights)
    name, inner = "layer1.0.conv1", kept["layer1.0.conv1"]
    old = before[f"{name}.weight"][inner][:, kept["conv1"]]
    assert torch.equal(model.get_parameter(f"{name}.weight"), old) == (weights != "new")
    again = scaled(weights)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_new_weights_get_all_epochs():
    phases = list(METHODS["uniform_scaling"](Settings()).schedule(Budget(0.5, 3, 4)))
    assert [(p.epochs, p.sparsity) for p in phases] == [(0, 0.0), (7, 0.5)]
    with pytest.raises(ValueError, match="weights is 'odd': expected one of new, l1, random"):
        METHODS["uniform_scaling"](Settings(), weights="odd")
