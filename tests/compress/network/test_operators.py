"""The rules, operator by operator: each in the table is run, and keeps the function when channels move or leave."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.operators import RULES
from tests.helpers.cutting import random_keep, zero_channels
from tests.helpers.random_networks import difference, images, randomise
from tests.helpers.rotated import Between, ChannelsLast, Flattened, Lines, Volumes, Words, check_function_is_kept


def shuffle(x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


# name -> (function of an activation with 8 channels, channels after it)
ON_CHANNELS = {
    **{
        f.__name__: (f, 8)
        for f in (
            torch.relu, torch.relu_, F.hardtanh, F.hardtanh_, F.relu6, F.leaky_relu, F.leaky_relu_, F.hardswish,
            F.hardsigmoid, torch.sigmoid, torch.sigmoid_, F.silu, F.gelu, torch.tanh, torch.clone, shuffle,
            F.elu, F.elu_, F.celu, F.selu, F.softplus, F.mish, F.logsigmoid, F.hardshrink, F.softshrink,
            torch.abs, torch.exp, torch.square, torch.neg,
        )
    },
    "threshold": (lambda x: F.threshold(x, 0.1, 0), 8),
    "clamp": (lambda x: x.clamp(-1, 1).clamp_(min=-0.5), 8),
    "clamp_min": (lambda x: x.clamp_min(0.1).log().to(torch.float).to(torch.double), 8),
    "powers": (lambda x: (1 + x**2).sqrt() + (2 - (1 + x**2).rsqrt()), 8),
    "feature dropout": (lambda x: F.dropout2d(x, 0.5, False), 8),
    "hardswish_": (lambda x: F.hardswish(x, inplace=True), 8),
    "hardsigmoid_": (lambda x: F.hardsigmoid(x, inplace=True), 8),
    "silu_": (lambda x: F.silu(x, inplace=True), 8),
    "dropout": (lambda x: F.dropout(F.dropout(x, 0.5, False, inplace=True), 0.5, False), 8),
    "contiguous": (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 8),
    "detach": (lambda x: x.detach(), 8),
    "alias": (lambda x: torch.ops.aten.alias(x), 8),
    "add": (lambda x: (x + torch.tanh(x)).add_(x), 8),
    "sub": (lambda x: (x - torch.tanh(x)).sub_(0.5), 8),
    "mul": (lambda x: (x * torch.tanh(x)).mul_(x), 8),
    "div": (lambda x: (x / (3 + torch.tanh(x))).div_(2), 8),
    "squeeze-excite": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), 8),
    "spatial attention": (lambda x: x * torch.sigmoid(x[:, :1]), 8),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), 8),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 1, 1), 8),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), 8),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2.0), 8),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), 8),
    "pad space": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 8),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), 13),
    "crop channels": (lambda x: F.pad(x, (0, 0, 0, 0, -1, -2)), 5),
    "concat": (lambda x: torch.cat([torch.relu(x), x], 1), 16),
    "concat in space": (lambda x: torch.cat([torch.relu(x), x], 3), 8),
    "slice": (lambda x: x[:, 2:6], 4),
    "slice and add": (lambda x: x[:, 2:6] + x[:, 4:8], 4),
    "flip by concat": (lambda x: x + torch.cat([x[:, 4:], x[:, :4]], 1), 8),
    "select": (lambda x: x.select(1, 3).unsqueeze(1) * x, 8),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 8),
    "split": (lambda x: torch.relu(x.split(4, 1)[1]), 4),
    "split_with_sizes": (lambda x: x.split([3, 5], 1)[1], 5),
    "squeeze": (lambda x: x.unsqueeze(2).squeeze(2).unsqueeze(2).unsqueeze(2).squeeze((2, 3)), 8),
    "expand": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4), 8),
    "view": (lambda x: x.view(x.shape[0], 8, 36).view(x.shape[0], 8, 6, 6), 8),
    "flatten": (lambda x: x.flatten(2).unsqueeze(-1), 8),
    "more of each number": (
        lambda x: (x.clamp_max(2).sin() + x.cos().sign() * x.floor().erf() + x.round()).abs().log1p() + 1 / (2 + x * x),
        8,
    ),
    "choices": (lambda x: torch.where(x > 0, x, 2 * x).masked_fill(x < -1, -1.0) * (x >= 0) + (x <= 0) * (x == 0.0), 8),
    "compared": (lambda x: x * (x > x.tanh()) + x * (x < x.tanh()) * (x != 0), 8),
    "maxima": (lambda x: torch.maximum(x, -x) - torch.minimum(x, x * 2) + torch.max(x, x) - torch.min(x, x), 8),
    "addcmul": (lambda x: torch.addcmul(x, x, x).type_as(x), 8),
    "alpha dropout": (lambda x: F.alpha_dropout(x, 0.5, False), 8),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), 8),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x.flatten(2), 4).unsqueeze(3), 8),
    "one axis": (lambda x: F.max_pool1d(F.avg_pool1d(F.adaptive_avg_pool1d(x.flatten(2), 16), 2), 2).unsqueeze(3), 8),
    "nearest, one axis": (lambda x: F.interpolate(F.interpolate(x.flatten(2), 9), 36, mode="linear").unsqueeze(3), 8),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 8),
    "softmax over channels": (lambda x: torch.softmax(x, 1) + F.log_softmax(x, 1), 8),
    "softmax over positions": (lambda x: torch.softmax(x.flatten(2), 2).view_as(x), 8),
    "means of channels": (lambda x: torch.cat([getattr(x, f)(1, True) for f in ("mean", "sum", "amax", "amin")], 1), 4),
    "reductions": (lambda x: x * (x.max(1, True)[0] + x.logsumexp(1, True) + x.std(1, keepdim=True)), 8),
    "corrected": (lambda x: x * (x.var(1, keepdim=True, correction=0) + x.std((2, 3), keepdim=True, correction=0)), 8),
    "of everything": (lambda x: x * x.mean() + x.sum() * 0.01, 8),
    "deviations": (lambda x: x * x.var((2, 3), keepdim=True) + x.std((2, 3), keepdim=True), 8),
    "F.normalize": (lambda x: F.normalize(x, dim=1), 8),
    "zeros": (lambda x: torch.cat([x, torch.zeros_like(x), torch.ones_like(x), x.new_zeros(x.shape)], 1), 32),
    "constants": (lambda x: torch.cat([x, *(f(len(x), 2, 6, 6).to(x) for f in (torch.zeros, torch.ones))], 1), 12),
    "stack": (lambda x: torch.stack([x, torch.relu(x)], 2).flatten(2, 3), 8),
    "glu": (lambda x: F.glu(x, 1), 4),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), 8),
    "roll": (lambda x: x.roll((1, 1), (2, 3)).flip(3), 8),
    "roll of channels": (lambda x: x.roll(1, 1) + x.flip(1), 8),
    "tokens": (lambda x: x.flatten(2).mT.swapaxes(1, 2).unflatten(2, (6, 6)).movedim(1, 3).movedim(3, 1), 8),
    "expand_as": (lambda x: x.mean((2, 3), keepdim=True).expand_as(x).squeeze(), 8),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1).tile(1, 1, 2, 1).repeat_interleave(2, 1), 32),
    "narrow and unbind": (lambda x: torch.stack(x.narrow(1, 2, 4).unbind(1), 1), 4),
    "transpose": (lambda x: x.transpose(2, 3), 8),
}  # fmt: skip

LAYERS = {
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), 8),
    "depthwise, two filters a channel": (lambda: nn.Conv2d(8, 16, 3, groups=8), 16),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=2), 12),
    "padding='same'": (lambda: nn.Conv2d(8, 6, 3, padding="same"), 6),
    "convolution of lines": (lambda: Lines(nn.Conv1d(8, 6, 3, padding="same")), 6),
    "convolution of lines, plain": (lambda: Lines(nn.Conv1d(8, 8, 3, padding=1, groups=8)), 8),
    "transposed, of lines": (lambda: Lines(nn.ConvTranspose1d(8, 6, 3)), 6),
    "convolution of volumes": (lambda: Volumes(nn.Conv3d(8, 6, 3, padding=1)), 6),
    "layer norm of channels": (lambda: ChannelsLast(nn.LayerNorm(8)), 8),
    "layer norm of all": (lambda: nn.LayerNorm((8, 6, 6)), 8),
    "layer norm of positions": (lambda: nn.LayerNorm(6), 8),
    "group norm, a group to a channel": (lambda: nn.GroupNorm(8, 8), 8),
    "embedding": (lambda: Words(), 8),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3), 6),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(8, 6, 2, 2, groups=2), 6),
    "PReLU": (lambda: nn.PReLU(8), 8),
    "PReLU, one slope": (nn.PReLU, 8),
    "group norm": (lambda: nn.GroupNorm(2, 8), 8),
    "instance norm": (lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8),
    "no affine": (lambda: nn.BatchNorm2d(8, affine=False), 8),
    "no statistics": (lambda: nn.BatchNorm2d(8, track_running_stats=False), 8),
}


@pytest.mark.parametrize("name", ON_CHANNELS)
def test_function_is_kept(name):
    function, channels = ON_CHANNELS[name]
    check_function_is_kept(Between(function, channels), images(2, 3, 6, 6))


@pytest.mark.parametrize("name", LAYERS)
def test_function_is_kept_through_layer(name):
    layer, channels = LAYERS[name]
    check_function_is_kept(Between(layer(), channels), images(1, 3, 6, 6))


def test_every_rule_is_exercised_above():
    models = [Between(f, n) for f, n in ON_CHANNELS.values()] + [Between(f(), n) for f, n in LAYERS.values()]
    models.append(Flattened())
    seen = set()
    for model in models:
        program = torch.export.export(model.double().eval(), (images(1, 3, 6, 6),))
        seen |= {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert set(RULES) - seen == set(), "rules without a test"
    assert operator.getitem in seen


# the code of these says how many channels there are, in a view or beside one
COUNTED = {"shuffle", "view", "zeros", "slice and add", "repeat"}


@pytest.mark.parametrize("name", [*ON_CHANNELS, *LAYERS])
def test_masked_is_cut(name):
    """What is left computes what the masked network does, or the code says a number that the trace cannot know."""
    function, channels = ON_CHANNELS[name] if name in ON_CHANNELS else (LAYERS[name][0](), LAYERS[name][1])
    model = randomise(Between(function, channels), 3, 6, 6)
    graph = DependencyGraph.trace(model, images(1, 3, 6, 6))
    keep = random_keep(graph)
    masked, narrow = copy.deepcopy(model), copy.deepcopy(model)
    if not keep:
        return
    zero_channels(masked, graph, keep)
    surgery.cut(narrow, graph, keep)
    try:
        found = narrow(images(2, 3, 6, 6))
    except RuntimeError:
        assert name in COUNTED
        return
    assert difference(masked(images(2, 3, 6, 6)), found) < 1e-9
