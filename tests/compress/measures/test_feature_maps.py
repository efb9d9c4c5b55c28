"""What channels are on images, and the criteria that look at it: hrank, ezcrop."""

import pytest
import torch
from torch import nn

from kerf.compress.measures import feature_maps
from kerf.compress.methods import METHODS
from kerf.compress.methods.ezcrop import spectral_tail
from kerf.compress.methods.hrank import rank
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.channels import Channel
from tests.helpers.attaching import traced
from tests.helpers.sweeps import sweep


def of(maps: list) -> torch.Tensor:
    return torch.tensor(maps, dtype=torch.float)[None, None]


def test_ranks():
    assert rank(of([[1, 2], [2, 4]])).item() == 1
    assert rank(torch.eye(3)[None, None]).item() == 3
    assert rank(torch.zeros(2, 5, 4, 4)).tolist() == [[0.0] * 5] * 2


def impulse(size: int, row: int = 0, column: int = 0, height: float = 1.0) -> torch.Tensor:
    maps = torch.zeros(1, 1, size, size)
    maps[..., row, column] = height
    return maps


def test_the_share_of_the_spectrum_outside_the_window():
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert spectral_tail(torch.full((1, 1, 8, 8), 3.0)).item() == pytest.approx(0, abs=1e-6)
    assert spectral_tail(impulse(8)).item() == pytest.approx(0.859375)
    assert spectral_tail(impulse(8, 3, 6, 7.5)).item() == pytest.approx(0.859375)
    assert spectral_tail(of((2 * board - 1).tolist())).item() == pytest.approx(1, abs=1e-6)
    assert spectral_tail(of(board.tolist())).item() == pytest.approx(0.5)
    assert spectral_tail(torch.zeros(1, 1, 8, 8)).item() == 0


@pytest.mark.parametrize(
    ("size", "share"),
    [
        (1, 0),
        (2, 0.75),
        (3, 0.888889),
        (4, 0.4375),
        (5, 0.64),
        (6, 0.75),
        (7, 0.816327),
        (16, 0.902344),
        (32, 0.920898),
    ],
)
def test_the_window_by_size(size, share):
    assert spectral_tail(impulse(size)).item() == pytest.approx(share, abs=1e-6)


def test_a_map_that_is_shifted_around_has_the_same_share():
    maps = torch.rand(2, 3, 8, 8)
    assert torch.allclose(spectral_tail(maps.roll((3, 5), (2, 3))), spectral_tail(maps), atol=1e-5)


def test_maps_are_what_the_next_convolution_reads():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    model.train()(torch.randn(8, 3, 9, 9))
    example = torch.zeros(1, 3, 9, 9)
    graph = DependencyGraph.trace(model.eval(), example)
    units = Channel().split(model, graph, example)
    batches = [(torch.randn(4, 3, 9, 9), torch.zeros(4)) for _ in range(3)]
    found = feature_maps.mean(model.train(), graph, units, lambda: iter(batches), 6, feature_maps.level)
    x = torch.cat([batches[0][0], batches[1][0][:2]])
    with torch.no_grad():
        assert torch.allclose(found["0"].float(), model.eval()[:3](x).mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(found["3"].float(), model[:6](x).mean((0, 2, 3)), atol=1e-5)  # not the pooled one
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


FEW = ("mobilenet_v3_small", "densenet40", "mobilenet_v2")


@pytest.mark.parametrize("arch", sweep(FEW, quick=FEW[:2]))
def test_every_layer_of_the_zoo_shows_its_channels(arch):
    model, graph, x = traced(arch)
    channels = METHODS["ezcrop"](Settings(by_macs=True, residual=True)).granularity
    units = channels.split(model, graph, x[:1])
    seen = []

    def size(maps: torch.Tensor) -> torch.Tensor:
        seen.append(maps.shape[2])
        return maps.amax((2, 3))

    found = feature_maps.mean(model, graph, units, lambda: iter([(x, torch.zeros(2))]), 1, size)
    assert all(len(found[u.path]) == u.count for u in units)
    assert min(seen) > 1
