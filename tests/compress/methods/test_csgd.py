"""C-SGD: the centripetal update, clusters, trimming; over every architecture."""

import pytest
import torch

from kerf.compress.methods import METHODS
from kerf.compress.methods.csgd import CLUSTERINGS, _Segments
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from tests.helpers.archs import archs
from tests.helpers.attaching import attached, plan, traced
from tests.helpers.random_networks import difference


def test_cluster_means_are_those_of_the_matrix_form():
    """G' = Γ G + Λ W of the paper, without its D×D matrices."""
    first = torch.tensor([0, 1, 0, 3, 1, 0])
    w, g = torch.randn(6, 5), torch.randn(6, 5)
    together = first[:, None] == first[None, :]
    share = together / together.sum(1, keepdim=True)
    epsilon = 0.05
    wanted = share @ g + epsilon * (torch.eye(6) - share) @ w
    assert torch.allclose(_Segments(first, w).centripetal(w, g, epsilon), wanted, atol=1e-6)
    assert _Segments(torch.arange(6), w).centripetal(w, g, epsilon) is g  # nothing is merged: ordinary SGD


def test_differences_within_a_cluster_shrink_by_themselves():
    """Δ ← (1 − τ ε) Δ, whatever the task's gradients are."""
    segments, w = _Segments(torch.tensor([0, 0, 2]), torch.zeros(1)), torch.randn(3, 4)
    apart = w[0] - w[1]
    for _ in range(10):
        w = w - 0.1 * segments.centripetal(w, torch.randn(3, 4), 0.5)
    assert torch.allclose(w[0] - w[1], (1 - 0.1 * 0.5) ** 10 * apart, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("name", CLUSTERINGS)
def test_clusterings_give_as_many_clusters_as_asked(name, count):
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    rows[3:6] = rows[3]  # equal filters
    assert len(CLUSTERINGS[name](rows, count, 0).unique()) == count


@pytest.mark.parametrize("arch", archs())
def test_trimming_equal_clusters_keeps_the_function(arch):
    model, graph, units, chosen, x, _ = attached("csgd", arch, clusters="even")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for unit in units:  # what a long training ends in
            into = chosen.pressure.into[unit.path]
            for (path, axis), owner in unit.channels.places.items():
                if axis == 0:
                    copies = [(owner == i).nonzero().flatten() for i in range(unit.count)]
                    for i, j in enumerate(into.tolist()):
                        tensors[path][copies[i]] = tensors[path][copies[j]]
        assert max(chosen.pressure.deviation(model).values()) < 1e-9
        before = model(x)
        keep = chosen.scope([u.sizes.float() for u in units], units, 0.5)
        chosen.remove(model, graph, units, keep, lambda: x)
        assert difference(before, model(x)) < 1e-9


def test_what_nothing_carries_is_not_apart():
    """Without batch norms and biases there are kernels alone."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.Conv2d(8, 4, 3, bias=False))
    x = torch.zeros(1, 3, 8, 8)
    graph = DependencyGraph.trace(model.eval(), x)
    chosen = METHODS["csgd"](Settings())
    chosen.pressure.attach(model, graph, chosen.granularity.split(model, graph, x), plan())
    apart = chosen.pressure.deviation(model)
    assert apart["kernels"] > 0
    assert (apart["vectors"], apart["statistics"]) == (0.0, 0.0)


def test_the_strength_of_short_runs():
    """Differences shrink by exp(-15) where a tenth of ε acts, ten times as far with momentum 0.9; at most 1/τ."""
    model, graph, x = traced("resnet20")
    for steps, wanted in ((100_000, 15 / (0.1 / 0.1 * 0.01 * 100_000)), (10, 1 / 0.01)):
        chosen = METHODS["csgd"](Settings())
        chosen.pressure.attach(model, graph, chosen.granularity.split(model, graph, x[:1]), plan(0.5, steps))
        assert chosen.pressure.strength == pytest.approx(wanted)
    assert METHODS["csgd"](Settings(), strength=0.003).pressure.asked == 0.003
    with pytest.raises(ValueError, match="clusters is 'odd'"):
        METHODS["csgd"](Settings(), clusters="odd")
