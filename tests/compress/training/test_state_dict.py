"""The ways in which other programs wrap a network's tensors."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from kerf.compress.training.state_dict import ANYWHERE, AVERAGED, TRAINED, weights_in

pytestmark = pytest.mark.quick


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def same(found, model):
    wanted = model.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


def silent(line):
    raise AssertionError(line)


KNOWN = ("module.", "model.", "net.", *(f"{name}." for name in ANYWHERE))
PREFIXES = [
    "",
    *KNOWN,
    *("".join(pair) for pair in itertools.product(KNOWN, KNOWN)),
    "_forward_module.model._orig_mod.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_that_all_names_carry_go(prefix):
    model = net()
    assert same(weights_in({f"{prefix}{k}": v for k, v in model.state_dict().items()}, silent), model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_that_some_names_lack_stays(prefix):
    state = {f"{prefix}{k}": v for k, v in net().state_dict().items()} | {"0.extra": torch.ones(1)}
    assert weights_in(state, silent).keys() == state.keys()


def test_wrappers_around_parts_go():
    model = net()
    names = {"0.weight": "0._orig_mod.weight", "1.bias": "1._checkpoint_wrapped_module._fsdp_wrapped_module.bias"}
    assert same(weights_in({names.get(k, k): v for k, v in model.state_dict().items()}, silent), model)
    both = {"0.weight": torch.ones(1), "0._orig_mod.weight": torch.zeros(1)}
    assert weights_in(both, silent).keys() == both.keys()  # neither is the other


def test_what_torch_itself_wraps():
    model = net()
    assert same(weights_in(torch.compile(model).state_dict(), silent), model)
    assert same(weights_in(nn.DataParallel(model).state_dict(), silent), model)
    assert same(weights_in({"model_ema": AveragedModel(model).state_dict()}, silent), model)
    assert same(weights_in(torch.compile(AveragedModel(model)).state_dict(), silent), model)


@pytest.mark.parametrize("key", [*TRAINED, *AVERAGED, "backbone"])
def test_keys_of_a_state_dict(key):
    model, optimiser = net(), torch.optim.SGD(net().parameters(), 0.1, momentum=0.9).state_dict()
    assert same(weights_in({"epoch": 3, key: model.state_dict(), "optimizer": optimiser}, silent), model)


@pytest.mark.parametrize("key", [*TRAINED, *AVERAGED])
def test_keys_within_keys(key):
    model = net()
    assert same(weights_in({key: {"state_dict": model.state_dict()}, "step": torch.tensor(3)}, silent), model)


def test_settings_under_a_key_of_weights_are_passed_over():
    model = net()
    assert same(weights_in({"model": {"depth": 20}, "network": model.state_dict()}, silent), model)


@pytest.mark.parametrize("averaged", AVERAGED)
def test_trained_weights_win_over_their_average_and_that_is_said(averaged):
    said, model, other = [], net(), net()
    assert same(weights_in({averaged: other.state_dict(), "model": model.state_dict()}, said.append), model)
    assert said == [f"holds 'model' and {averaged!r}: taken is 'model'; save another one alone to take it"]


def test_several_state_dicts_of_unknown_keys_are_refused():
    with pytest.raises(ValueError, match="several state dicts, generator, critic"):
        weights_in({"generator": net().state_dict(), "critic": net().state_dict()}, silent)


def test_a_lightning_checkpoint_keeps_a_loss_beside_the_model():
    said, model = [], net()
    state = {f"model.{k}": v for k, v in model.state_dict().items()} | {"loss.weight": torch.ones(2)}
    assert same(weights_in({"pytorch-lightning_version": "2.4", "state_dict": state}, said.append), model)
    assert said == ["is Lightning's: taken is 'model'; beside it are loss"]


def test_masks_beside_raw_weights_are_applied():
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    found = weights_in(model.state_dict(), silent)
    assert torch.equal(found["0.weight"], model[0].weight)
    assert found.keys() == net().state_dict().keys()


@pytest.mark.parametrize("found", [[], 3, {}, {"epoch": 3}, {0: torch.ones(1)}])
def test_what_is_no_state_dict(found):
    with pytest.raises(ValueError, match="expected a state dict"):
        weights_in(found, silent)
