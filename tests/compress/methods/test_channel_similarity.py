import copy

import pytest
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import nn

from kerf.compress.measures import moments
from kerf.compress.measures.clusters import CORRELATIONS, clusters, distances
from kerf.compress.methods import METHODS
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.settings import Settings
from tests.helpers.random_networks import difference, images

BETA, GAMMA = torch.tensor([0.1, 0.2], dtype=torch.double), torch.tensor([1.0, 0.9], dtype=torch.double)


def correlated(rho: float) -> torch.Tensor:
    return torch.tensor([[1, rho], [rho, 1]], dtype=torch.double)


@pytest.mark.parametrize(("rho", "expected"), [(1.0, 0.02), (0.0, 1.82), (0.5, 0.92)])
def test_distances(rho, expected):
    apart = distances(BETA, GAMMA, correlated(rho))
    assert apart.tolist() == [[0, pytest.approx(expected)], [pytest.approx(expected), 0]]


def test_a_negated_channel_is_far_as_a_signal_and_near_as_a_distribution():
    beta, gamma = torch.tensor([0.3, 0.3]).double(), torch.tensor([0.7, -0.7]).double()
    assert distances(beta, gamma, correlated(1.0))[0, 1].item() == pytest.approx(4 * 0.49)
    assert distances(beta, gamma, CORRELATIONS["sign"](correlated(1.0), gamma))[0, 1].item() == pytest.approx(0)
    assert distances(beta, gamma, CORRELATIONS["none"](correlated(1.0), gamma))[0, 1].item() == pytest.approx(0.98)


def test_the_nearest_join_first():
    apart = torch.tensor([[0, 0.01, 1], [0.01, 0, 1], [1, 1, 0]])
    merges = [(int(a), int(b)) for a, b, *_ in linkage(squareform(apart.numpy()), "average")]
    assert clusters(merges, 2).tolist() == [3, 3, 2]
    assert clusters(merges, 3).tolist() == [0, 1, 2]
    assert clusters(merges, 1).unique().numel() == 1


def test_correlations_are_those_of_all_pixels():
    x = images(6, 3, 4, 4)
    x[:, 2] = 2.0
    found = moments.correlations(nn.Sequential(nn.Identity()), ["0"], [(x[:4], None), (x[4:], None)])["0"]
    assert torch.allclose(found[:2, :2], torch.corrcoef(x[:, :2].transpose(0, 1).flatten(1)))
    assert found[2].tolist() == [0, 0, 1]


def twins(sign: float) -> nn.Sequential:
    """Filter 5 is filter 2; γ has the other sign if asked."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(100, 3)
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.normal_()
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[5] = tensor[2]
        model[1].weight[5] *= sign
        model[1].momentum = 1.0
        model.train()(images(8, 3, 9, 9))
    return model.eval()


def one_fewer(model: nn.Sequential, **own) -> tuple[nn.Sequential, list[int]]:
    model, x = copy.deepcopy(model), images(8, 3, 9, 9)
    graph = DependencyGraph.trace(model, x[:1])
    recipe = METHODS["channel_similarity"](Settings(skip=()), **own)
    kept = prune(model, recipe, graph, x[:1], 1 / 6, lambda: iter([(x, torch.zeros(8))])).kept
    return model, (~kept["0"]).nonzero().flatten().tolist()


def test_a_twin_is_merged_without_loss():
    model, x = twins(1.0), images(4, 3, 9, 9, seed=1)
    with torch.no_grad():
        merged, gone = one_fewer(model)
        assert gone in ([2], [5])
        assert difference(model(x), merged(x)) < 1e-6
        alone, _ = one_fewer(model, inherit=0)
        assert difference(model(x), alone(x)) > 1e-3


def test_the_negative_of_a_channel_is_not_its_twin():
    assert one_fewer(twins(-1.0))[1] not in ([2], [5])
    assert one_fewer(twins(-1.0), correlation="sign")[1] in ([2], [5])  # as any measure of batch norms alone


def test_what_it_cannot_compare_is_refused():
    with pytest.raises(ValueError, match="correlation is 'odd': expected one of measured, none, sign"):
        METHODS["channel_similarity"](Settings(), correlation="odd")
    with pytest.raises(ValueError, match="not sums: leave --residual out"):
        METHODS["channel_similarity"](Settings(residual=True))
