"""Whole networks of other kinds than the papers': what moves and what leaves keeps their outputs, of training too."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import StochasticDepth

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import answer, tensors
from tests.helpers.cutting import random_keep, zero_channels
from tests.helpers.random_networks import difference, images


class Unet(nn.Module):
    """Down, and up again by a transposed convolution, by a pixel shuffle and by interpolation."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.down, self.deep = nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.join = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(14, 8, 3, padding=1)
        self.wide, self.shuffle = nn.Conv2d(8, 16, 1), nn.PixelShuffle(2)
        self.out = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a = self.norm(self.stem(x)).relu()
        b = self.down(a).relu()
        c = self.deep(b).relu()
        d = self.join(torch.cat([self.up(c), b], 1)).relu()
        e = self.shuffle(self.wide(d))
        small = F.interpolate(self.out(torch.cat([a, e], 1)), size=8, mode="bilinear")
        return small, {"deep": [small.mean((2, 3))]}


class Eca(nn.Module):
    """Efficient channel attention: a convolution along the channels, in their order."""

    def __init__(self):
        super().__init__()
        self.a, self.attend, self.b = nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = self.attend(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.out(self.b(x * y.sigmoid()).amax((2, 3)))


class Pool(nn.Module):
    """A block of PoolFormer: pooling mixes positions, a perceptron channels, learned scales weigh both."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(1, 8), nn.GroupNorm(1, 8)
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.scale, self.scale2 = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8, 1, 1))
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.first(x)
        x = x + self.scale[:, None, None] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        x = x + self.scale2 * self.down(F.gelu(self.up(self.second(x))))
        return self.out(x.mean((2, 3)))


class Audio(nn.Module):
    """Lines of samples."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 8, 9, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12), nn.PReLU(12), nn.Conv1d(12, 6, 3),
            nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Siamese(nn.Module):
    """Two images through the same layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.head = nn.Linear(12, 5)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = self.body(left).mean((2, 3)), self.body(right).mean((2, 3))
        return {"same": self.head(torch.cat([a * b, (a - b).abs()], 1)), "apart": (a - b).square().sum(1)}


class Normed(nn.Module):
    """Weights that are computed before each call stay, and so do their channels."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 8, 3)
        self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3))
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.b(self.a(x).relu()).relu()).relu())


class Detector(nn.Module):
    """torchvision's SSDlite before it decodes boxes: a backbone whose six maps each have two heads."""

    def __init__(self):
        super().__init__()
        whole = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(x).values()))


def swin(**options) -> nn.Module:
    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5, **options)


def image(size: int) -> Tensor:
    return images(2, 3, size, size)


def segmentation(make, **options) -> nn.Module:
    return make(weights=None, weights_backbone=None, num_classes=5, **options)


SEGMENTATION = tv.segmentation
TWO = (images(2, 3, 9, 9), images(2, 3, 9, 9, seed=1))
# name -> (network, inputs, whether all that was met has a rule)
NETWORKS = {
    "vit": (lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5), image(32), False),
    "swin": (swin, image(32), False),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
        image(32),
        True,
    ),
    "densenet": (lambda: tv.DenseNet(4, (2, 2), 8, num_classes=5), image(32), True),
    "unet": (Unet, image(16), True),
    "eca": (Eca, image(12), False),
    "poolformer": (Pool, image(16), True),
    "audio": (Audio, images(2, 1, 200), True),
    "siamese": (Siamese, TWO, True),
    "siamese, by name": (Siamese, {"right": TWO[0], "left": TWO[1]}, True),
    "weight norm": (Normed, image(12), False),
}
SLOW = {
    "swin v2": (lambda: swin(block=SwinTransformerBlockV2), image(32), False),
    "googlenet": (lambda: tv.googlenet(init_weights=False), image(96), True),
    "inception": (lambda: tv.inception_v3(init_weights=False), image(299), True),
    "ssdlite": (Detector, image(96), True),
    "deeplab": (lambda: segmentation(SEGMENTATION.deeplabv3_mobilenet_v3_large, aux_loss=True), image(64), True),
    "fcn": (lambda: segmentation(SEGMENTATION.fcn_resnet50, aux_loss=True), image(64), True),
    "lraspp": (lambda: segmentation(SEGMENTATION.lraspp_mobilenet_v3_large), image(64), True),
}


def prepared(make) -> nn.Module:
    """In f64, every parameter away from what hides a fault, nothing at random in training."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = make().double().eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, nn.Dropout | StochasticDepth):
                module.p = 0.0
    return model


def worst(a, b) -> float:
    return max(difference(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@torch.no_grad()
def in_training(model: nn.Module, example):
    return answer(copy.deepcopy(model).train(), example)


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_outputs_stay_when_channels_move_and_are_those_of_the_masked_when_they_leave(name):
    make, example, ruled = (NETWORKS | SLOW)[name]
    model = prepared(make)
    graph = DependencyGraph.trace(model, _pytree.tree_map(lambda t: t[:1], example))
    assert (graph.note == "") is ruled, graph.note
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    orders = {g.name: torch.randperm(g.width, generator=generator) for g in graph.groups if not g.fixed}
    assert orders
    surgery.permute(moved, graph, orders)
    with torch.no_grad():
        assert worst(answer(model, example), answer(moved, example)) < 1e-9
    assert worst(in_training(model, example), in_training(moved, example)) < 1e-9

    keep = random_keep(graph)
    assert keep
    masked, narrow = copy.deepcopy(model), copy.deepcopy(model)
    zero_channels(masked, graph, keep)
    surgery.cut(narrow, graph, keep)
    with torch.no_grad():
        assert worst(answer(masked, example), answer(narrow, example)) < 1e-9
    assert all(t.isfinite().all() for t in tensors(in_training(narrow, example)))


def test_the_perceptrons_of_a_vision_transformer_can_be_cut():
    model = prepared(NETWORKS["vit"][0])
    graph = DependencyGraph.trace(model, image(32)[:1])
    cuttable = {s.name: s.width for s in graph.sets if not s.fixed and s.makers}
    assert cuttable == {f"encoder.layers.encoder_layer_{i}.mlp.0": 64 for i in range(2)}
    assert graph.note.startswith("no rule follows channels through aten.scaled_dot_product_attention.default")


class Aided(nn.Module):
    """A classifier beside the network's own, in training alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.aid, self.aid2 = nn.Linear(8, 5), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor):
        x = self.a(x).relu()
        y = self.head(self.b(x).mean((2, 3)))
        return (y, self.aid2(self.aid(x).relu().mean((2, 3)))) if self.training else y


def test_branches_of_training_follow_their_channels():
    model = prepared(Aided)
    graph = DependencyGraph.trace(model, image(12)[:1])
    (a,) = (s for s in graph.sets if s.name == "a")
    assert ("aid.weight", 1) in a.places
    assert {s.name for s in graph.sets if not s.fixed} == {"a", "b", "aid"}
    assert not graph.reused
