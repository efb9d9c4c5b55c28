"""What becomes of units that go: zeroed, cut, drawn anew; and what is said of it."""

import math

import pytest
import torch
from torch import nn

from kerf.compress.models import create
from kerf.compress.network import folding
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import removal
from kerf.compress.units.channels import Channel
from kerf.compress.units.weights import OneByN

EXAMPLE = torch.zeros(1, 3, 32, 32)


def network(units) -> tuple[nn.Module, DependencyGraph, tuple, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    graph = DependencyGraph.trace(model, EXAMPLE)
    found = units.split(model, graph, EXAMPLE)
    return model, graph, found, [torch.arange(u.count) % 4 != 1 for u in found]


def test_parts_of_weights_become_zero_and_their_masks_say_which():
    model, graph, units, keep = network(OneByN(4))
    before = {u.path: model.get_parameter(u.path).detach().clone() for u in units}
    removed = removal.plain(model, graph, units, keep, lambda: EXAMPLE)
    assert set(removed.masks) == set(before)
    assert removed.graph is graph
    assert not removed.kept
    for unit, kept in zip(units, keep):
        mask = removed.masks[unit.path]
        assert mask.dtype == torch.bool
        assert torch.equal(mask, unit.mask(kept))
        assert torch.equal(model.get_parameter(unit.path), before[unit.path] * mask)


def test_channels_leave():
    model, graph, units, keep = network(Channel())
    widths = {u.path: int(k.sum()) for u, k in zip(units, keep)}
    removed = removal.plain(model, graph, units, keep, lambda: EXAMPLE)
    assert {path: int(k.sum()) for path, k in removed.kept.items()} == widths
    assert all(model.get_submodule(path).out_channels == width for path, width in widths.items())
    assert removed.note == f"{sum(widths.values())} of 336 channels stay, in 9 layers"
    assert not removed.masks
    with pytest.raises(ValueError, match="shorter"):  # a choice for each of the units
        removal.by_set(units, keep[1:])


def test_what_cannot_be_folded_is_said(monkeypatch):
    model, graph, units, keep = network(Channel())
    seen: dict[str, object] = {}
    monkeypatch.setattr(folding, "renormalise", lambda _, norms, x: seen.update(norms=norms, x=x))
    monkeypatch.setattr(folding, "absorb_constants", lambda *_: {"a": 0.25, "b": 0.5})
    removed = removal.cut_folded(model, graph, units, keep, lambda: EXAMPLE)
    assert removed.note.endswith("in 9 layers; not exact in 2 layers, where up to 5.0e-01 cannot be folded")
    assert seen["x"] is EXAMPLE
    assert seen["norms"] == {
        f"{u.path.removesuffix('.conv1')}.bn1" for u in units
    }  # what makes them has other variances
    model, graph, units, keep = network(Channel())
    monkeypatch.setattr(folding, "absorb_constants", lambda *_: {})
    assert removal.cut_folded(model, graph, units, keep, lambda: EXAMPLE).note.endswith("stay, in 9 layers")


def test_weights_are_drawn_anew_from_the_seed_and_from_nothing_else():
    def renewed(seed: int, before: int) -> nn.Module:
        model, graph, units, keep = network(Channel())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(3.0)
            model.bn1.running_mean.fill_(3.0)
        torch.manual_seed(before)
        state = torch.get_rng_state()
        removal.renew(seed)(model, graph, units, keep, lambda: EXAMPLE)
        assert torch.equal(state, torch.get_rng_state())
        return model

    first, again, other = renewed(1, 5), renewed(1, 6), renewed(2, 5)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    widest = first.get_parameter("layer3.1.conv2.weight")  # 64 × 48 × 3 × 3: He et al. for what leaves the layer
    assert float(widest.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert float(first.bn1.weight.min()) == float(first.bn1.weight.max()) == 1
    assert not first.bn1.running_mean.any()


def test_biases_of_what_is_drawn_anew_are_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.zeros(1, 3, 6, 6)
    graph = DependencyGraph.trace(model, x)
    units = Channel().split(model, graph, x)
    removal.renew(0)(model, graph, units, [torch.arange(u.count) < 3 for u in units], lambda: x)
    assert (model[0].out_channels, model[2].out_channels, model[4].in_features) == (3, 3, 12)
    assert not model[0].bias.any()
    assert not model[2].bias.any()
    assert model[4].bias.any()  # its own rule
