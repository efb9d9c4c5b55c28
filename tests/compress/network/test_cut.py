"""Cutting channels: the narrow network is the masked one, over every architecture and every way channels meet."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

from kerf.compress.models import MODELS, create
from kerf.compress.network import cost, surgery
from kerf.compress.network.graph import DependencyGraph
from tests.helpers.archs import archs
from tests.helpers.cutting import random_keep, zero_channels
from tests.helpers.random_networks import difference, images, randomise
from tests.helpers.sweeps import sweep

OTHERS = {
    "alexnet": tv.alexnet,  # flatten with 6×6 positions
    "vgg11": tv.vgg11_bn,
    "shufflenet": tv.shufflenet_v2_x0_5,  # chunk, channel shuffle
    "googlenet": lambda: tv.googlenet(init_weights=False, aux_logits=False),  # concatenation
    "squeezenet": tv.squeezenet1_1,
    "densenet121": tv.densenet121,
    "resnext": tv.resnext50_32x4d,  # grouped convolutions
    "regnet_y": tv.regnet_y_400mf,  # grouped, with squeeze-excitation
    "efficientnet": tv.efficientnet_b0,
    "mnasnet": tv.mnasnet0_5,
}


def assert_masked_is_cut(model: nn.Module, graph: DependencyGraph, x: Tensor, keep: dict[str, Tensor]) -> nn.Module:
    masked, narrow = copy.deepcopy(model), copy.deepcopy(model)
    zero_channels(masked, graph, keep)
    left = surgery.cut(narrow, graph, keep)
    with torch.no_grad():
        assert difference(masked(x), narrow(x)) < 1e-9  # in f64
    assert {s.name: s.width for s in left.sets} == {
        s.name: int(keep[s.name].sum()) if s.name in keep else s.width for s in graph.sets
    }
    # what a fresh trace of the narrow network finds is what was predicted
    again = DependencyGraph.trace(narrow, x[:1])
    assert {s.name: s.width for s in again.sets} == {s.name: s.width for s in left.sets}
    for a, b in zip(again.sets, left.sets, strict=True):
        assert a.places.keys() == b.places.keys()
        assert all(torch.equal(a.places[p], b.places[p]) for p in a.places), a.name
    return narrow


@pytest.mark.parametrize("arch", archs())
def test_masked_network_is_the_cut_one(arch):
    model = randomise(create(arch, 10, 32), 3, 32, 32)
    graph = DependencyGraph.trace(model, images(1, 3, 32, 32))
    before = sum(p.numel() for p in model.parameters())
    narrow = assert_masked_is_cut(model, graph, images(2, 3, 32, 32), random_keep(graph))
    assert sum(p.numel() for p in narrow.parameters()) < 0.5 * before


@pytest.mark.parametrize("name", sweep(OTHERS, quick=("shufflenet", "squeezenet")))
def test_masked_torchvision_network_is_the_cut_one(name):
    model = randomise(OTHERS[name](), 3, 64, 64)
    graph = DependencyGraph.trace(model, images(1, 3, 64, 64))
    assert_masked_is_cut(model, graph, images(2, 3, 64, 64), random_keep(graph))


AGAIN = ("resnet20", "resnet20_projection", "densenet40", "mobilenet_v3_small")


@pytest.mark.parametrize("arch", sweep(AGAIN, quick=AGAIN[:2]))
def test_a_cut_network_trains_and_can_be_cut_again(arch):
    model = create(arch, 10, 32)
    graph = DependencyGraph.trace(model, images(1, 3, 32, 32).float())
    graph = surgery.cut(model, graph, random_keep(graph))
    model.train()
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model(images(4, 3, 32, 32).float()).sum().backward()
    sgd.step()
    before = cost.count(model, images(1, 3, 32, 32).float()).macs
    surgery.cut(model, graph, random_keep(graph, seed=1))
    assert cost.count(model, images(1, 3, 32, 32).float()).macs < before
    assert model(images(4, 3, 32, 32).float()).isfinite().all()


class Chunked(nn.Module):
    """Two halves go different ways and are joined again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).relu().chunk(2, dim=1)
        return self.c(torch.cat([left, self.b(right)], 1)).mean((2, 3))


class Sliced(Chunked):
    """As above, but the code says that the halves have four channels."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c(torch.cat([y[:, :4], self.b(y[:, 4:])], 1)).mean((2, 3))


class Shared(nn.Module):
    """One convolution reads its own output, so its channels come in and go out together."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.stem(x)).relu()).relu()
        return self.head(F.adaptive_avg_pool2d(y, 4).flatten(1))


class Padded(nn.Module):
    """Zero channels are added by a number in the code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(F.pad(y, (0, 0, 0, 0, 1, 1)) + self.b(y)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "cuttable"),
    [(Chunked, {"a": 4, "b": 4}), (Sliced, {"b": 4}), (Shared, {"stem": 6}), (Padded, {"a": 4})],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_only_what_can_leave_is_cut(network, cuttable):
    model = randomise(network(), 3, 12, 12)
    graph = DependencyGraph.trace(model, images(1, 3, 12, 12))
    assert {s.name: s.width for s in graph.sets if not s.fixed} == cuttable
    assert_masked_is_cut(model, graph, images(2, 3, 12, 12), random_keep(graph))


def test_depthwise_filters_go_with_their_channels():
    model = create("mobilenet_v2", 10, 32)
    graph = DependencyGraph.trace(model, images(1, 3, 32, 32).float())
    surgery.cut(model, graph, {"features.3.conv.0.0": torch.arange(144) < 17})
    depthwise = model.features[3].conv[1][0]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (17, 17, 17)


def test_flattened_channels_take_their_columns_along():
    """Channel 1 of 2 with 2×2 positions is columns 4..7; the ResRep authors' converter takes 1, 3, 5, 7."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 2, 2))
    columns = model[2].weight.detach()[:, :4].clone()
    surgery.cut(model, graph, {"0": torch.tensor([True, False])})
    assert torch.equal(model[2].weight, columns)
    assert model[2].in_features == 4


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nowhere": torch.ones(3, dtype=torch.bool)}, "no channels 'nowhere'"),
        ({"a": torch.ones(3, dtype=torch.bool)}, "a: expected 4 truth values"),
        ({"a": torch.zeros(4, dtype=torch.bool)}, "a: none of 4 channels would be left"),
        ({"c": torch.tensor([True] * 4 + [False])}, "c: the number of its channels is visible outside"),
    ],
)
def test_refusals_come_before_any_change(keep, message):
    model = randomise(Chunked(), 3, 12, 12)
    graph = DependencyGraph.trace(model, images(1, 3, 12, 12))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        surgery.cut(model, graph, {"b": torch.arange(4) < 2} | keep)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("arch", sweep(MODELS, quick=("resnet20", "mobilenet_v3_small")))
def test_merging_equal_channels_keeps_the_function(arch):
    """Every channel of a set made equal to another of it, then trimmed: C-SGD's claim, without its training."""
    model = randomise(create(arch, 10, 32), 3, 32, 32)
    graph = DependencyGraph.trace(model, images(1, 3, 32, 32))
    into = {}
    with torch.no_grad():
        for s in graph.sets:
            if s.fixed:
                continue
            into[s.name] = torch.arange(s.width) // 3 * 3
            for (path, axis), owner in s.places.items():
                if axis == 0:
                    tensor = surgery.tensor_at(model, path)
                    copies = [(owner == i).nonzero().flatten() for i in range(s.width)]
                    for i, j in enumerate(into[s.name].tolist()):
                        tensor[copies[i]] = tensor[copies[j]]
        x = images(2, 3, 32, 32)
        before = model(x)
        surgery.merge(model, graph, into)
        assert difference(before, model(x)) < 1e-9


@pytest.mark.peers
@pytest.mark.parametrize("arch", ["resnet20", "resnet50", "vgg16", "mobilenet_v2", "densenet40"])
def test_torch_pruning_couples_the_same_channels(arch):
    """A second opinion on what has to leave with the channels of each layer."""
    tp = pytest.importorskip("torch_pruning")
    model = create(arch, 10, 32).eval()
    x = images(1, 3, 32, 32).float()
    graph = DependencyGraph.trace(model, x)
    theirs = tp.DependencyGraph().build_dependency(model, x)
    for s in graph.sets:
        if s.fixed or s.pads or any(pad.pads for pad in graph.sets):
            continue
        layer = model.get_submodule(s.makers[0].rpartition(".")[0])
        entry = int((s.places[s.makers[0], 0] == 0).nonzero()[0])
        group = theirs.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=[entry])
        touched = set()
        for dependency, _ in group:
            name = next((n for n, m in model.named_modules() if m is dependency.target.module), None)
            if name is not None and hasattr(model.get_submodule(name), "weight"):
                touched.add(name)
        assert touched == {path.rpartition(".")[0] for path, _ in s.places}, s.name
