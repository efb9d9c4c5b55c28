"""Published widths and what they save: the whole way from names of layers to multiply-accumulates."""

import pytest
import torch

from kerf.compress.models import create
from kerf.compress.network import cost, surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.widths import Widths
from tests.helpers.sweeps import sweep

# ResRep's published log, torchvision's ResNet-50: internal widths of every block
RESREP = [
    [(22, 22), (23, 36), (1, 1)],
    [(62, 97), (16, 49), (38, 68), (41, 92)],
    [(189, 204), (69, 145), (65, 139), (64, 94), (67, 89), (86, 95)],
    [(473, 488), (171, 281), (511, 512)],
]
INTERNAL = [[(64, 64)] * 3, [(128, 128)] * 4, [(256, 256)] * 6, [(512, 512)] * 3]


def names_of(widths):
    return {
        f"layer{stage}.{block}.conv{conv}": width
        for stage, blocks in enumerate(widths, 1)
        for block, pair in enumerate(blocks)
        for conv, width in enumerate(pair, 1)
    }


@pytest.fixture(scope="module")
def resnet50():
    model = create("resnet50", 1000, 224).eval()
    example = torch.zeros(1, 3, 224, 224)
    graph = DependencyGraph.trace(model, example)
    return model, graph, example, Widths.of(model, graph, example)


def test_resreps_resnet50_has_45_percent_of_the_macs(resnet50):
    model, graph, example, widths = resnet50
    assert widths.dense == 4_089_184_256
    published = names_of(RESREP)
    assert len(published) == 32
    predicted = widths.macs(published)
    assert predicted / widths.dense == pytest.approx(0.454581, abs=5e-7)
    surgery.cut(model, graph, {n: torch.arange(widths.now[n]) < w for n, w in published.items()})
    assert cost.count(model, example).macs == predicted


@pytest.mark.parametrize(("share", "removed"), [(0.7, 35.69), (0.6, 45.88), (0.5, 55.44), (0.4, 63.53), (0.3, 71.02)])
def test_csgds_resnet50(resnet50, share, removed):
    """Internal widths times a share, rounded up; in percent of the MACs."""
    widths = resnet50[3]
    narrow = {name: -int(-width * share // 1) for name, width in names_of(INTERNAL).items()}
    assert 100 * (1 - widths.macs(narrow) / widths.dense) == pytest.approx(removed, abs=0.006)


@pytest.mark.parametrize(("sixteenths", "removed"), [(13, 33.93), (11, 52.66), (10, 60.86)])
def test_csgds_resnet56(sixteenths, removed):
    """Every layer, residual sums included, with projection shortcuts counted as 2×2 kernels as the authors do."""
    model = create("resnet56_projection", 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    widths = Widths.of(model, DependencyGraph.trace(model, example), example)
    narrow = {name: width * sixteenths // 16 for name, width in widths.now.items() if width in (16, 32, 64)}

    def counted(chosen: dict[str, int]) -> int:
        every = {**widths.now, **chosen}
        projections = [layer for path, layer in widths.layers.items() if "projection" in path]
        assert len(projections) == 2
        return widths.macs(chosen) + 3 * sum(layer.macs(every) for layer in projections)

    assert counted({}) == 126_534_272
    assert 100 * (1 - counted(narrow) / counted({})) == pytest.approx(removed, abs=0.006)


def test_csgds_densenet40_with_three_filters_per_layer():
    model = create("densenet40", 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    widths = Widths.of(model, graph, example)
    narrow = {name: 3 for name, width in widths.now.items() if width == 12}
    assert len(narrow) == 36
    assert widths.macs(narrow) / widths.dense == pytest.approx(1 - 0.787, abs=5e-4)
    surgery.cut(model, graph, {name: torch.arange(12) < 3 for name in narrow})
    assert cost.count(model, example).macs == widths.macs(narrow)


PREDICTED = ("resnet20", "vgg16", "densenet40", "mobilenet_v3_small", "resnet18")


@pytest.mark.parametrize("arch", sweep(PREDICTED, quick=("resnet20", "vgg16", "densenet40")))
def test_predicted_macs_are_those_of_the_cut_network(arch):
    model = create(arch, 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    widths = Widths.of(model, graph, example)
    assert widths.dense == cost.count(model, example).macs
    generator = torch.Generator().manual_seed(0)
    keep = {s.name: torch.rand(s.width, generator=generator) < 0.6 for s in graph.sets if not s.fixed}
    for kept in keep.values():
        kept[:2] = True
    one = next(iter(keep))
    chosen = {name: int(kept.sum()) for name, kept in keep.items()}
    every = {**widths.now, **chosen}
    assert widths.saved(every, one, 1) == widths.macs(every) - widths.macs({**every, one: 1})
    surgery.cut(model, graph, keep)
    assert cost.count(model, example).macs == widths.macs(chosen)
