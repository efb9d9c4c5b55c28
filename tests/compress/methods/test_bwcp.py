"""BWCP: an example worked by hand, folding over every architecture that takes it, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.bwcp import WhitenedBatchNorm2d, covariance, drawn, inverse_root, margin, whiten
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.schedules import Budget
from kerf.compress.units.channels import Foldable
from tests.helpers.archs import archs
from tests.helpers.attaching import BY_MACS, attached, plan, traced
from tests.helpers.random_networks import difference, images


@pytest.mark.parametrize(
    ("shift", "scale", "delta", "chance"),
    [(0, 1, 0, 0.5), (0.5, 0.5, 0, 0.8413447), (0.5, 0.5, 0.05, 0.8159399), (-0.2, 0.1, 0.05, 0.0062097)],
)
def test_chances(shift, scale, delta, chance):
    z = margin(torch.tensor(float(shift)), torch.tensor(float(scale)), delta)
    assert float(torch.special.ndtr(z)) == pytest.approx(chance, abs=1e-6)
    assert float(torch.special.ndtr(margin(torch.tensor(float(shift)), torch.tensor(-scale), delta))) == pytest.approx(
        chance, abs=1e-6
    )


GAMMA = torch.tensor([[1.0, 0.5]], dtype=torch.double)


def test_newton_step_by_step():
    sigma = covariance(GAMMA, torch.eye(2, dtype=torch.double)[None])
    assert torch.allclose(sigma[0], torch.diag(torch.tensor([0.8, 0.2], dtype=torch.double)))
    steps = [(1.1, 1.4), (1.1176, 1.8256), (1.118034, 2.129961), (1.118034, 2.228635), (1.118034, 2.236031)]
    for t, wanted in enumerate(steps, 1):
        assert inverse_root(sigma, t)[0].diagonal().tolist() == pytest.approx(wanted, abs=1e-6)
    assert inverse_root(sigma, 20)[0].diagonal().tolist() == pytest.approx([1.1180340, 2.2360680], abs=1e-7)


def whitened(gamma, beta, delta: float = 0.0, **own) -> WhitenedBatchNorm2d:
    norm = nn.BatchNorm2d(len(gamma), eps=1e-12).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(gamma))
        norm.bias.copy_(torch.tensor(beta))
    options = {"group": 16, "iterations": 1, "delta": delta, "tau": 0.5} | own
    return whiten(norm, torch.ones(len(gamma), dtype=torch.bool), **options)


def test_whitening_widens_the_gap():
    rho = torch.tensor([[[1, 0.5], [0.5, 1]]], dtype=torch.double)
    sigma = covariance(GAMMA, rho)
    assert sigma[0].flatten().tolist() == pytest.approx([0.8, 0.2, 0.2, 0.2])
    w = inverse_root(sigma, 1)
    gamma, beta = GAMMA[0], torch.tensor([0.2, -0.1], dtype=torch.double)
    assert (w[0] @ gamma).tolist() == pytest.approx([1.05, 0.60])
    assert (w[0] @ beta).tolist() == pytest.approx([0.23, -0.16])
    assert torch.special.ndtr(beta / gamma).tolist() == pytest.approx([0.5793, 0.4207], abs=5e-5)
    norm = whitened([1.0, 0.5], [0.2, -0.1])
    assert torch.special.ndtr(norm.margins(w)).tolist() == pytest.approx([0.5867, 0.3949], abs=5e-5)


def test_soft_masks():
    z = torch.special.ndtri(torch.tensor(0.8, dtype=torch.double)).requires_grad_()
    mask = drawn(z, 0.5, 0.0)
    assert mask.item() == pytest.approx(16 / 17)
    mask.backward()
    density = math.exp(-(z.item() ** 2) / 2) / math.sqrt(2 * math.pi)
    assert z.grad.item() == pytest.approx(16 / 17 / 17 * density / (0.5 * 0.8 * 0.2))  # m (1 − m) f / (τ P (1 − P))
    extreme = drawn(torch.tensor([-30.0, 30.0], dtype=torch.double), 0.5, 0.0)
    assert extreme.tolist() == pytest.approx([0, 1])


def test_scales_near_zero_have_gradients():
    """A real run met one after 75 steps."""
    scale = torch.cat([torch.logspace(-7, -3, 2000), -torch.logspace(-7, -3, 2000)]).requires_grad_()
    for shift, wanted in ((0.5, 1), (-0.5, 0)):
        mask = drawn(margin(torch.tensor(shift), scale, 0.05), 0.5, torch.linspace(-60, 60, 4000))
        assert (mask == wanted).all()
        assert torch.isfinite(torch.autograd.grad(mask.sum(), scale)[0]).all()


def test_hard_masks_are_a_test_of_the_shift():
    """P > 1/2 exactly where W β > δ; the likeliest channel stays whatever it has."""
    torch.manual_seed(0)
    norm = whitened(torch.randn(40).tolist(), torch.randn(40).tolist(), delta=0.05, iterations=5)
    shift = torch.block_diag(*norm.whitening)[:40, :40] @ norm.bias
    assert torch.equal(norm.hard(), shift > 0.05)
    assert not norm.hard().all()
    with torch.no_grad():
        norm.bias.fill_(-1.0)
        norm.whitening.copy_(torch.eye(16).expand(3, -1, -1))
    assert int(norm.hard().sum()) == 1


@pytest.mark.parametrize("channels", [8, 16, 24])
def test_training_whitens_the_batch_group_by_group(channels):
    torch.manual_seed(0)
    norm = whitened([1.0] * channels, [0.5] * channels, iterations=12, tau=1e-6, delta=-100.0)  # masks are 1
    x = torch.randn(64, channels, 5, 5, dtype=torch.double)
    x[:, 1] += x[:, 0]
    y = norm.train()(x)
    for first in range(0, channels, 16):
        part = y[:, first : first + 16].transpose(0, 1).flatten(1)
        # without a rescale: Σ_N^(-1/2) leaves variance ‖γ‖² = the group's size
        assert torch.allclose(part.cov(correction=0), len(part) * torch.eye(len(part)).double(), atol=1e-3)
    assert torch.allclose(norm.eval().whitening, norm.whitening)
    assert int(norm.whitened) == 1
    x = torch.randn(64, channels, 5, 5, dtype=torch.double)
    before = norm.whitening.clone()
    for _ in range(30):
        norm.train()(x)
    fresh = whitened([1.0] * channels, [0.5] * channels, iterations=12)
    fresh.train()(x)
    share = 1 / 2 * 2 / 3 * 3 / 4 * 4 / 5 * 5 / 6 * 6 / 7 * 7 / 8 * 8 / 9 * 9 / 10 * 0.9**21  # a mean of ten, then 0.1
    assert torch.allclose(norm.whitening, share * before + (1 - share) * fresh.whitening, atol=1e-9)


def test_gradients_reach_scale_shift_and_input():
    torch.manual_seed(0)
    norm = whitened([0.8, 1.2, 0.5], [0.1, -0.2, 0.3], iterations=3).train()
    x = torch.randn(4, 3, 3, 3, dtype=torch.double, requires_grad=True)

    def run(x, weight, bias):
        torch.manual_seed(1)  # the same masks
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    # running statistics move, outputs in training do not depend on them
    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias), atol=1e-6)


def disturb(pressure) -> None:
    """Matrices and shifts as training might leave them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in pressure.norms.values():
            noise = torch.randn(norm.whitening.shape, generator=generator, dtype=torch.double)
            norm.whitening.add_(0.1 * noise)


@pytest.mark.parametrize("arch", archs("densenet40"))
def test_folding_keeps_the_function(arch):
    """Masked in evaluation, folded, cut: the same outputs."""
    model, graph, units, chosen, x, _ = attached("bwcp", arch)
    pressure = chosen.pressure
    disturb(pressure)
    pressure.observe(model, graph, units, lambda: iter(()))
    keep = []
    for unit in units:
        kept = pressure.score(unit) > math.log(0.5)
        kept[pressure.score(unit).argmax()] = True
        keep.append(kept)
    masks = pressure.masks(model, graph, units, keep)
    assert not all(mask.all() for mask in masks.values())
    for maker, norm in pressure.norms.items():
        norm.hard = lambda mask=masks[maker]: mask
    with torch.no_grad():
        before = model(x)
        for norm in pressure.norms.values():
            del norm.hard
        removed = chosen.remove(model, graph, units, keep, lambda: x)
        assert difference(before, model(x)) < 1e-6
    assert "not exact" not in removed.note
    assert not any(isinstance(m, WhitenedBatchNorm2d) for m in model.modules())
    assert not any("whiten" in name for name in model.state_dict())


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_folding_without_cutting_keeps_the_function(arch):
    model, graph, x = traced(arch)
    chosen = METHODS["bwcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan())
    disturb(chosen.pressure)
    assert any(not norm.hard().all() for norm in chosen.pressure.norms.values())
    with torch.no_grad():
        before = model(x)
        chosen.pressure.fold(model)
        assert difference(before, model(x)) < 1e-9


def test_the_penalty_is_signed_and_sets_in_after_a_sixth():
    model, _, _, chosen, _, _ = attached("bwcp", "resnet20", gamma_weight=2.0, beta_weight=3.0)
    pressure = chosen.pressure
    nothing = lambda *_: (torch.zeros((), dtype=torch.double), None)  # noqa: E731
    assert float(pressure.loss(model, None, None, nothing, 16)[0]) == 0
    pressure.loss(model, None, None, nothing, 17)[0].backward()
    norm = next(iter(pressure.norms.values()))
    assert torch.equal(norm.weight.grad, 2 * norm.weight.sign())
    assert (norm.bias.grad == 3).all()


def test_sums_are_whitened_on_every_branch():
    model, graph, x = traced("resnet20_projection")
    units = Foldable(True, scaled=True).split(model, graph, x[:1])
    chosen = METHODS["bwcp"](BY_MACS)
    chosen.pressure.attach(model, graph, units, plan())
    assert len(chosen.pressure.norms) == sum(len(u.channels.makers) for u in units)
    chosen.pressure.observe(model, graph, units, lambda: iter(()))
    whole = next(u for u in units if len(u.channels.makers) > 1)
    each = [chosen.pressure.norms[maker] for maker in whole.channels.makers]
    wanted = sum(torch.special.log_ndtr(norm.margins(norm.whitening)) for norm in each)
    assert torch.allclose(chosen.pressure.score(whole), wanted.detach())


def test_before_whitening_chances_are_those_of_the_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    x = torch.zeros(1, 3, 4, 4)
    graph = DependencyGraph.trace(model, x)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, 0.1]))
        model[1].bias.copy_(torch.tensor([0.5, -0.2]))
    chosen = METHODS["bwcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x)
    chosen.observe(model, graph, units, lambda: iter(()))
    assert chosen.criterion(units[0]).exp().tolist() == pytest.approx([0.8159399, 0.0062097], abs=1e-6)


def test_bf16_activations_are_whitened_in_f32():
    norm = whitened([1.0] * 4, [0.0] * 4).float()
    x = images(8, 4, 5, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm.train()(x)
    assert y.dtype == torch.bfloat16
    assert norm.whitening.dtype == torch.float32
    assert F.relu(y).isfinite().all()


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_likely_cuts_exactly_what_evaluation_masks(arch):
    """Whatever was asked for, and the function of the trained network stays."""
    model, graph, units, chosen, *_ = attached("bwcp", arch, likely=1)
    pressure = chosen.pressure
    disturb(pressure)
    pressure.observe(model, graph, units, lambda: iter(()))
    scores = [pressure.score(u) for u in units]
    keeps = [chosen.scope(scores, units, asked) for asked in (0.1, 0.9)]
    assert all(torch.equal(a, b) for a, b in zip(*keeps))
    for score, keep in zip(scores, keeps[0]):
        wanted = score.exp() > 0.5
        wanted[score.argmax()] = True
        assert torch.equal(keep, wanted)
    assert sum(int((~k).sum()) for k in keeps[0]) > 0
    if arch == "resnet20":  # sums have a mask on every branch: no branch knows the product
        units, keep = zip(*((u, k) for u, k in zip(units, keeps[0]) if len(u.channels.makers) == 1))
        masks = pressure.masks(model, graph, units, keep)
        inner = {maker: norm.hard() for maker, norm in pressure.norms.items() if maker in {u.path for u in units}}
        assert all(torch.equal(masks[maker], mask) for maker, mask in inner.items())


def test_likely_fine_tunes_nothing():
    *_, trained, cut = METHODS["bwcp"](BY_MACS, likely=1).schedule(Budget(0.5, 10, 8))
    assert (trained.pressure, trained.epochs, cut.epochs) == (True, 18, 0)
    with pytest.raises(ValueError, match="likely is 2: expected 1"):
        METHODS["bwcp"](BY_MACS, likely=2)


def test_bad_numbers_are_one_line():
    with pytest.raises(ValueError, match="group 0, iterations 5, tau"):
        METHODS["bwcp"](BY_MACS, group=0)
