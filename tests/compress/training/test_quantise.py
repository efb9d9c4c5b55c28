"""Fake quantisation: grids, gradients, idempotence; bits of layers and their search."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.drl import bit_widths
from kerf.compress.methods.drl.bit_widths import BitWalk, BitWidths, Numbers, bits_of, fitted
from kerf.compress.models import create
from kerf.compress.pruning.schedules import Budget
from kerf.compress.training import quantise
from kerf.compress.training.quantise import Grid, Quantisers, from_json, on_grid, to_json
from kerf.compress.training.sample import Shown
from tests.helpers.attaching import BY_MACS, FEW, plan, traced
from tests.helpers.random_networks import images


# worked by hand from arXiv 1912.02254
def test_bits():
    assert [bits_of(a, 1, 8) for a in (0.0, 0.25, 0.5, 1.0)] == [1, 2, 4, 8]
    assert [bits_of(a) for a in (0.0, 0.25, 0.5, 1.0)] == [2, 3, 5, 8]  # 3.25, 5, 8.5


def test_bits_fall_from_the_last_layer_to_the_first_until_they_fit():
    assert fitted([8, 8, 8], [10, 10, 10], 240) == [8, 8, 8]
    assert fitted([8, 8, 8], [10, 10, 10], 239) == [8, 8, 7]
    assert fitted([8, 8, 8], [10, 10, 10], 200) == [7, 7, 6]
    assert fitted([2, 8, 2], [10, 10, 10], 65) == [2, 2, 2]
    assert fitted([2, 3, 2], [10, 10, 10], 10) == [2, 2, 2]  # and no further


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_lie_on_their_grid_and_stay_there(bits):
    torch.manual_seed(bits)
    weight = torch.randn(12, 5, 3, 3) * torch.logspace(-20, 20, 12).view(-1, 1, 1, 1)
    weight[3] = 0
    weight[4, 0] = 0
    most, scale, found = 2 ** (bits - 1) - 1, quantise.weight_scale(weight, bits), on_grid(weight, bits)
    steps = (found.double() / scale.double()).flatten(1)
    assert torch.equal(steps, steps.round())
    rows = [i for i in range(12) if i != 3]
    assert bool((steps.abs().amax(1)[rows] == most).all())  # the largest weight ends the grid
    assert float((found - weight).abs().div(scale).max()) <= 0.5 + 1e-4
    assert not found[3].any()
    assert not found[4, 0].any()  # what is pruned stays so
    assert torch.equal(on_grid(found, bits), found)
    assert len(steps.unique()) <= 2 * most + 1


def test_inputs_are_rounded_and_clipped_and_gradients_pass_what_was_not():
    x = torch.tensor([-0.3, -0.05, 0.26, 0.0, 24.9, 99.0], requires_grad=True)
    y = quantise.input_on_grid(x, Grid(8, 0.1, 2))
    assert torch.allclose(y, torch.tensor([-0.2, -0.0, 0.3, 0.0, 24.9, 25.3]), atol=1e-6)
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]
    w = torch.randn(4, 3, requires_grad=True)
    on_grid(w, 3).sum().backward()
    assert torch.equal(w.grad, torch.ones(4, 3))


def test_calibration_sees_the_least_and_the_most_and_always_zero():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    found = quantise.calibrate(model, [torch.full((1, 1, 2, 2), v) for v in (-0.5, 1.0, 2.0)])
    assert list(found) == ["0", "3"]
    assert found["0"] == (pytest.approx(2.5 / 255), 51)
    assert found["3"] == (pytest.approx(4.0 / 255), 0)
    assert quantise.calibrate(model, [torch.full((1, 1, 2, 2), 3.0)])["0"] == (pytest.approx(3.0 / 255), 0)
    assert quantise.calibrate(model, [torch.zeros(1, 1, 2, 2)])["0"] == (1.0, 0)


def quantised_network(
    bits: int = 8, arch: str = "mobilenet_v2_x0_5"
) -> tuple[nn.Module, dict[str, Grid], torch.Tensor]:
    model, _, _ = traced(arch)
    model, x = model.float(), images(16, 3, 32, 32).float()
    with torch.no_grad():
        model.train()(x)  # statistics become those of these images
    model.eval()
    found = quantise.calibrate(model, [x])
    return model, {path: Grid(bits, *numbers) for path, numbers in found.items()}, x


def test_settled_weights_compute_the_same_bit_by_bit_and_detached_layers_are_plain():
    model, grids, x = quantised_network(4)
    with torch.no_grad():
        plain = model(x)
        quantisers = Quantisers(grids)
        quantisers.attach(model)
        before = model(x)
        names = list(model.state_dict())
        quantisers.settle(model)
        assert torch.equal(model(x), before)
        quantisers.detach()
        assert list(model.state_dict()) == names
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        assert torch.equal(quantise.quantised(model, grids)(x), before)
        assert quantise.quantised(model, {}) is model
    assert not torch.allclose(plain, before, rtol=1e-3)
    assert quantise.mean_bits(model, grids) == 4


def test_eight_bits_are_close():
    model, grids, x = quantised_network(8, "resnet20")
    with torch.no_grad():
        plain, coarse = model(x), quantise.quantised(model, grids)(x)
    assert float((plain - coarse).abs().max() / plain.abs().max()) < 0.05
    assert torch.equal(plain.argmax(1), coarse.argmax(1))


def test_grids_survive_json_and_others_are_refused():
    model, grids, _ = quantised_network()
    assert from_json(to_json(grids), model) == grids
    assert from_json({}, model) == {}
    path = next(iter(grids))
    for wrong in (
        [1, 0.1, 0],
        [9, 0.1, 0],
        [8, -0.1, 0],
        [8, float("nan"), 0],
        [8, 0.1, 256],
        [8, 0.1],
        "8",
        [8.0, 1, 0],
    ):
        with pytest.raises(ValueError, match="expected bits from 2 to 8"):
            from_json({path: wrong}, model)
    for wrong in ({"nowhere": [8, 0.1, 0]}, [1], None):
        with pytest.raises(ValueError, match="not a table of this network's"):
            from_json(wrong, model)


def shown(images: int = 24) -> Shown:
    random = torch.Generator().manual_seed(3)
    means = torch.randn(10, 3, 1, 1, generator=random)

    def part() -> list[tuple[torch.Tensor, torch.Tensor]]:
        y = torch.arange(images) % 10
        return [(means[y] + 0.1 * torch.randn(images, 3, 32, 32, generator=random), y)]

    parts = part(), part()
    return Shown(lambda: iter(parts[0]), lambda: iter(parts[1]))


def searching(size: float = 0.15, seed: int = 0) -> tuple[BitWidths, nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    pressure = BitWidths(Numbers(4, 16, 16, size, seed))
    pressure.attach(model, None, (), dataclasses.replace(plan(), sample=shown()))
    before = copy.deepcopy(model.state_dict())
    pressure.begin(model)
    return pressure, model, before


def test_a_search_meets_the_size_repeats_itself_and_leaves_the_weights_alone():
    state = torch.get_rng_state()
    pressure, model, before = searching()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert set(pressure.grids) == set(quantise.layers(model))
    assert quantise.mean_bits(model, pressure.grids) <= 0.15 * 32
    # not by more than the largest layer's last bit
    largest = max(model.get_submodule(p).weight.numel() for p in pressure.grids)
    total = sum(model.get_submodule(p).weight.numel() for p in pressure.grids)
    assert quantise.mean_bits(model, pressure.grids) > 2
    assert fitted([8] * 22, [largest] * 22, 1.5 * total)  # terminates where nothing fits
    torch.set_rng_state(state)
    assert searching()[0].grids == pressure.grids
    assert "weights of" in pressure.report(model)
    again = BitWidths(pressure.numbers)
    again.attach(model, None, (), plan())
    again.restore(pressure.state())
    assert again.grids == pressure.grids


def test_folding_leaves_plain_layers_on_their_grids():
    pressure, model, _ = searching()
    x = shown().training().__next__()[0]
    with torch.no_grad():
        before = model(x)
        pressure.fold(model)
        assert not pressure.attached
        assert torch.equal(quantise.quantised(model, pressure.grids)(x), before)
    for path, grid in pressure.grids.items():
        weight = model.get_submodule(path).weight
        assert torch.equal(on_grid(weight, grid.bits), weight)


def test_a_larger_size_keeps_all_bits():
    walk = BitWalk([nn.Conv2d(3, 4, 3), nn.Linear(4, 5)], 0.25, lambda bits: float(sum(bits)))
    assert walk.bits([1.0, 1.0]) == [8, 8]
    for bits in range(2, 9):  # the same for all, and where that is no whole number, more for the first layers
        alike = BitWalk([nn.Linear(4, 5), nn.Linear(4, 5)], bits / 32, lambda bits: 0.0)
        assert alike.bits([alike.even] * 2) == [bits] * 2
    alike = BitWalk([nn.Linear(4, 5), nn.Linear(4, 5)], 3.5 / 32, lambda bits: 0.0)
    assert alike.bits([alike.even] * 2) == [4, 3]
    assert walk.reward([1.0, 0.5]) == (13, [bit_widths.action_of(8), bit_widths.action_of(5)])  # what was executed
    told = walk.state([1.0])
    assert told.shape == (10,)
    assert float(told[7]) == pytest.approx(108 / 128 * 0.75)
    assert float(told[8]) == 0
    assert walk.allowed([1.0], 0.3) == 0.3
    assert bit_widths.WHOLE == 32


def test_pruning_alone_and_wrong_sizes():
    few = {k: v for k, v in FEW["drl"].items() if k != "size"}
    alone = METHODS["drl"](BY_MACS, size=1.0, variational="none", **few)
    assert not any(phase.pressure for phase in alone.schedule(Budget(0.5, 2, 8)))
    both = METHODS["drl"](BY_MACS, variational="none", **few)
    assert [(p.epochs, p.pressure) for p in both.schedule(Budget(0.5, 2, 8))] == [(2, False), (6, False), (2, True)]
    assert [(p.epochs, p.pressure) for p in both.schedule(Budget(0.5, 2, 1))] == [(2, False), (0, False), (1, True)]
    for size in (0.05, 1.5, 0.0):
        with pytest.raises(ValueError, match=r"expected a share from 0.0625 \(2 bits a weight\) to 1"):
            METHODS["drl"](BY_MACS, size=size)
