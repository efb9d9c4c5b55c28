"""DMCP: an example worked by hand, gates and expected MACs."""

import pytest
import torch

from kerf.compress.methods import METHODS
from kerf.compress.methods.dmcp import Chain, MarkovGates, macs_loss
from kerf.compress.models import create
from kerf.compress.network import surgery
from kerf.compress.pruning.schedules import Budget
from tests.helpers.attaching import BY_MACS, plan, traced
from tests.helpers.random_networks import difference


def test_dmcp_narrow_networks_are_the_cut_ones_behind_depthwise_layers_too():
    model, graph, x = traced("mobilenet_v2_x0_5")
    chosen = METHODS["dmcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.5))
    pressure.mode = {id(alpha): chain.least for alpha, chain in zip(pressure.alphas, pressure.chains)}
    with torch.no_grad():
        masked = model.eval()(x)
        pressure.fold(model)
        surgery.cut(model, graph, {u.path: torch.arange(u.count) < c.least for u, c in zip(units, pressure.chains)})
        assert difference(masked, model(x)) < 1e-6


# worked by hand from arXiv 2005.03354, widths of 0.1 to 1.0 in steps of 0.1
def test_dmcp_numbers():
    chain = Chain(64)
    assert (chain.each, chain.groups, chain.least) == (6, 9, 10)
    alpha = torch.zeros(9, requires_grad=True)
    expected = chain.expected(alpha)
    expected.backward()
    assert expected.item() == pytest.approx(15.98828125)
    assert float(alpha.grad[0]) == pytest.approx(2.994140625)
    assert float(alpha.grad[8]) == pytest.approx(0.005859375)
    small = Chain(10)
    assert (small.each, small.groups, small.least) == (1, 9, 1)
    assert float(small.expected(torch.zeros(9))) == pytest.approx(1.998046875)


def test_wider_networks_than_the_plain_one_are_searched():
    """Widths of 0.1 to 1.5 of a layer of 64 channels, in 14 steps: the card's rule, C being the wide layer's 96."""
    chain = Chain(96, 1.5)
    assert (chain.each, chain.groups, chain.least) == (6, 14, 12)
    assert float(chain.expected(torch.full((14,), 50.0))) == 96
    plain, wide = (create(arch, 10, 32) for arch in ("mobilenet_v2", "mobilenet_v2_x1_5"))
    assert len(wide.features[4].conv[2].weight) == 1.5 * len(plain.features[4].conv[2].weight)
    assert METHODS["dmcp"](BY_MACS, width=1.5).pressure.highest == 1.5
    with pytest.raises(ValueError, match=r"width is 0\.5: expected 1"):
        METHODS["dmcp"](BY_MACS, width=0.5)


def test_the_search_has_a_rate_of_its_own():
    _, search, retraining = METHODS["dmcp"](BY_MACS, search_rate=0.5).schedule(Budget(0.5, 0, 8))
    assert (search.rate.base, search.rate.policy, retraining.rate) == (0.5, "cos_step", None)


def test_dmcp_macs_loss():
    macs = torch.tensor(1500.0, requires_grad=True)
    loss = macs_loss(macs, 1000.0, 0.1)
    loss.backward()
    assert float(loss) == pytest.approx(0.400733, abs=1e-6)
    assert float(macs.grad) == pytest.approx(1.81818e-4, rel=1e-4)
    macs = torch.tensor(900.0, requires_grad=True)
    loss = macs_loss(macs, 1000.0, 0.1)
    loss.backward()
    assert float(loss) == pytest.approx(0.460517, abs=1e-6)
    assert float(macs.grad) == pytest.approx(-1e-3, rel=1e-4)
    macs = torch.tensor(970.0, requires_grad=True)
    loss = macs_loss(macs, 1000.0, 0.1)
    loss.backward()
    assert float(loss) == 0
    assert float(macs.grad) == 0


def test_dmcp_samples_average_to_the_expectation():
    torch.manual_seed(0)
    chain, alpha = Chain(64), torch.linspace(1, -1, 9)
    drawn = [chain.sample(alpha) for _ in range(4000)]
    assert set(drawn) <= {10 + 6 * k for k in range(10)}
    assert sum(drawn) / len(drawn) == pytest.approx(float(chain.expected(alpha)), rel=0.02)


def test_dmcp_expected_macs_are_the_macs_when_all_survive():
    model, graph, x = traced("resnet20")
    chosen = METHODS["dmcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    assert isinstance(pressure, MarkovGates)
    pressure.attach(model, graph, units, plan(0.5))
    with torch.no_grad():
        for alpha in pressure.alphas:
            alpha.fill_(50.0)
    assert float(pressure.expected_macs()) == pytest.approx(2000.0, rel=1e-5)  # thousandths of half
