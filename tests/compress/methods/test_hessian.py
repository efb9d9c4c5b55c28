import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kerf.compress.measures import curvature as estimates
from kerf.compress.measures import moments
from kerf.compress.measures.curvature import Numbers
from kerf.compress.methods import METHODS
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria
from kerf.compress.pruning.recipe import prune, scores
from kerf.compress.pruning.settings import Settings

NUMBERS = Numbers(images=64, probes=64, damping=0.0, seed=0)


def regression(moment: list, theta: list) -> tuple[nn.Linear, list]:
    """y = θᵀx, and inputs of just that second moment."""
    sigma = torch.tensor(moment, dtype=torch.double)
    x = torch.linalg.cholesky(sigma).T * len(sigma) ** 0.5
    model = nn.Linear(len(theta), 1, bias=False).double()
    model.weight.data = torch.tensor([theta], dtype=torch.double)
    return model, [(x, torch.zeros(len(x)))]


def costs(estimate, moment: list, theta: list) -> list[float]:
    model, data = regression(moment, theta)
    h = estimate(model, ["weight"], data, NUMBERS)["weight"]
    return (h * model.weight.detach().square().flatten() / 2).tolist()


def test_costs_of_linear_regression():
    theta = [0.6, 1.0]
    assert costs(estimates.covariance, [[4.0, 0.0], [0.0, 1.0]], theta) == pytest.approx([1.44, 1.0])
    assert costs(estimates.covariance, [[4.0, 1.0], [1.0, 1.0]], theta) == pytest.approx([1.44, 1.0])
    assert costs(estimates.obs, [[4.0, 1.0], [1.0, 1.0]], theta) == pytest.approx([1.08, 0.75])


def test_obs_is_the_error_when_the_other_weight_is_chosen_anew():
    model, [(x, _)] = regression([[4.0, 1.0], [1.0, 1.0]], [0.6, 1.0])
    y = model(x).detach()
    for gone, survivor, error in ((0, 1.6, 1.08), (1, 0.85, 0.75)):
        fit = torch.linalg.lstsq(x[:, [1 - gone]], y).solution
        assert fit.item() == pytest.approx(survivor)
        assert (x[:, [1 - gone]] @ fit - y).square().mean().item() == pytest.approx(error)


def test_magnitude_drops_the_other_weight():
    theta, cost = torch.tensor([0.6, 1.0]), torch.tensor(costs(estimates.covariance, [[4.0, 0], [0, 1.0]], [0.6, 1.0]))
    assert (int(theta.abs().argmin()), int(cost.argmin())) == (0, 1)


def test_scaling_inputs_and_weights_against_each_other_changes_no_cost():
    d = torch.tensor([3.0, 0.2])
    scaled = (torch.tensor([[4.0, 1.0], [1.0, 1.0]]) * d[:, None] * d[None, :]).tolist()
    for estimate, expected in ((estimates.covariance, [1.44, 1.0]), (estimates.obs, [1.08, 0.75])):
        assert costs(estimate, scaled, (torch.tensor([0.6, 1.0]) / d).tolist()) == pytest.approx(expected, rel=1e-5)


def test_estimates_against_the_whole_hessian():
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x, y = torch.randn(16, 3, dtype=torch.double), torch.arange(16) % 4
    data = [(x[:10], y[:10]), (x[10:], y[10:])]

    def loss(w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(x, w, model.bias), y)

    exact = torch.autograd.functional.hessian(loss, model.weight.detach()).view(12, 12).diagonal().view(4, 3)
    estimated = estimates.hutchinson(model, ["weight"], data, Numbers(64, 2000, 0.0, 0))["weight"]
    assert torch.allclose(estimated, exact, atol=0.02)
    squares = [torch.autograd.grad(F.cross_entropy(model(x[[i]]), y[[i]]), model.weight)[0] ** 2 for i in range(16)]
    assert torch.allclose(estimates.fisher(model, ["weight"], data, NUMBERS)["weight"], sum(squares) / 16)


def test_patches_of_a_convolution_are_what_it_multiplies():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    x = torch.randn(4, 2, 7, 7, dtype=torch.double)
    moment = moments.second_moments(layer, ["weight"], [(x, None)])["weight"]
    rows = layer.weight.detach().flatten(1)
    assert torch.allclose((rows @ moment @ rows.T).diagonal(), layer(x).detach().square().mean((0, 2, 3)))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 5)).double().eval()


@pytest.mark.parametrize("curvature", ["fisher", "covariance", "obs"])  # hutchinson only in expectation
def test_a_network_of_the_same_function_loses_the_same_weights(curvature):
    x = torch.randn(8, 3, 7, 7, dtype=torch.double)
    masks, magnitudes, found = [], [], []
    for scale in (1.0, 64.0):
        model = plain()
        with torch.no_grad():
            model[2].weight.mul_(scale)
            model[2].bias.mul_(scale)
            model[4].weight.div_(scale)
        graph = DependencyGraph.trace(model, x[:1])
        recipe = METHODS["hessian"](Settings(), curvature=curvature, images=8)
        sample = lambda: iter([(x, torch.arange(8) % 5)])  # noqa: E731
        units = recipe.granularity.split(model, graph, x[:1])
        found.append(torch.cat(scores(model, recipe, graph, units, sample)))
        magnitudes.append(torch.cat([criteria.l1(u) for u in units]))
        masks.append(prune(model, recipe, graph, x[:1], 0.5, sample).masks)
    assert all(torch.equal(masks[0][path], masks[1][path]) for path in masks[0])
    assert not torch.allclose(magnitudes[0], magnitudes[1])
    if curvature == "fisher":  # in units of the loss
        assert torch.allclose(found[0], found[1])


def test_an_estimate_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="curvature is 'odd': expected one of fisher, hutchinson, covariance, obs"):
        METHODS["hessian"](Settings(), curvature="odd")
