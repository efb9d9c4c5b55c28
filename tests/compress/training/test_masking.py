"""Contracts of masks, over all architectures and all methods that hide weights while training."""

import copy

import pytest
import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import MODELS, create
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe, removal
from kerf.compress.pruning.recipe import check
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.masking import ChannelMasks
from kerf.compress.training.pressure import NOTHING
from kerf.compress.training.train import Optim
from kerf.compress.units.channels import Channel
from tests.helpers.attaching import attached, traced
from tests.helpers.random_networks import difference
from tests.helpers.sweeps import sweep


def hides_weights(name: str) -> bool:
    recipe = METHODS[name](Settings(by_macs=True))
    return recipe.pressure is not NOTHING and not isinstance(recipe.granularity, Channel)


HIDING = [name for name in METHODS if hides_weights(name)]


@pytest.mark.parametrize("arch", sweep(MODELS, quick=("resnet20", "mobilenet_v3_small")))
def test_masked_networks_are_the_cut_ones(arch):
    model, graph, x = traced(arch)
    units = Channel(residual=True).split(model, graph, x[:1])
    masks, generator = ChannelMasks(), torch.Generator().manual_seed(1)
    masks.attach(model, graph, units)
    plain, again = model(x), None
    keep = [torch.rand(u.count, generator=generator) >= 0.4 for u in units]
    for kept in keep:
        kept[0] = True
    masks.keep(keep)
    with torch.no_grad():
        masked = model(x)
        masks.detach()
        again = model(x)
        surgery.cut(model, graph, removal.by_set(units, keep))
        assert difference(masked, model(x)) < 1e-9
    assert difference(plain, again) == 0
    assert difference(plain, masked) > 1e-3


@pytest.mark.parametrize("name", HIDING)
def test_hiding_nothing_changes_no_output(name):
    model, _, _, chosen, x, before = attached(name, "resnet20")
    names = {n for n, _ in model.named_parameters() if not n.startswith("movement.")}
    with torch.no_grad():
        assert difference(before, model(x)) < 1e-9
        chosen.pressure.fold(model)
        assert difference(before, model(x)) < 1e-9
    assert {n for n, _ in model.named_parameters()} == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def quick(name: str, sparsity: float = 0.5, **options):
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32))
    data = open_data("synthetic", Options(train_batch=16, subset=32))
    chosen = METHODS[name](Settings(n=4))
    check(model, chosen, graph, torch.zeros(1, 3, 32, 32), sparsity)
    optim = Optim(LearningRate(0.02, policy="cos_step", warmup=0))
    return model, run(model, chosen, data, Budget(sparsity, 0, 2), 0, graph=graph, optim=optim, **options), chosen


@pytest.mark.parametrize("name", HIDING)
def test_exactly_what_was_asked_is_zero_and_what_is_left_is_plain(name):
    model, outcome, chosen = quick(name, 0.7)
    units = chosen.granularity.split(
        model, DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32)), torch.zeros(1, 3, 32, 32)
    )
    gone = [int((u.rows() == 0).all(1).sum()) for u in units]
    total = sum(u.count for u in units)
    per_layer = sum(int(0.7 * u.count + 1e-9) for u in units)
    per_row = sum(u.count // u.shape[1] * int(0.7 * u.shape[1] + 1e-9) for u in units)  # equal counts: subp
    if all(len(u.sizes.unique()) == 1 for u in units):  # not so with pconv, whose shares are of weights: test_pconv.py
        assert sum(gone) == per_row if name == "subp" else sum(gone) in (int(0.7 * total + 1e-9), per_layer)
    assert all(g < u.count for g, u in zip(gone, units))
    assert all(torch.equal(model.get_parameter(path) != 0, mask) for path, mask in outcome.masks.items())
    assert set(model.state_dict()) == set(create("resnet20", 10, 32).state_dict())


@pytest.mark.parametrize("name", sweep(HIDING, quick=("movement", "dsc1", "pconv")))
def test_a_stopped_run_resumes_to_the_same_end(name, tmp_path):
    class Stop(Exception):
        pass

    def stop(rows: list[dict]) -> None:
        if len(rows) == 1:
            raise Stop

    whole, outcome, _ = quick(name)
    with pytest.raises(Stop):
        quick(name, file=tmp_path / "last.safetensors", on_history=stop)
    again, resumed, _ = quick(name, file=tmp_path / "last.safetensors", resume=True)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in outcome.history]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_evaluation_sees_the_masks_too():
    model, graph, units, chosen, x, _ = attached("movement", "resnet20")
    pressure = chosen.pressure
    pressure._choose(100)
    with torch.no_grad():
        masked = model(x)
        keep = [k.clone() for k in pressure.keep]
        recipe.remove(model, chosen, graph, units, keep, lambda: x)
        assert difference(masked, model(x)) < 1e-9
    assert copy.deepcopy(model)(x).isfinite().all()
