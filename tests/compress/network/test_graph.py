"""The dependency graph: what moves together, what stays and what is said of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph, Member, UnsupportedOperator
from tests.helpers.random_networks import images
from tests.helpers.rotated import Between, ChannelsLast, Flattened, Rearranged, check_function_is_kept


def members(graph: DependencyGraph, name: str) -> set[Member]:
    return set(next(g for g in graph.groups if g.name == name).members)


def test_flatten_repeats_columns():
    graph = check_function_is_kept(Flattened(), images(2, 3, 6, 6))
    assert Member("hidden.weight", 1, 0, 36) in members(graph, "conv")
    assert members(graph, "conv") == {
        Member("conv.weight", 0, produces=True), Member("conv.bias", 0), Member("hidden.weight", 1, 0, 36)
    }  # fmt: skip


def test_flatten_of_channels_last_tiles_columns():
    """(B, H, W, C) flattened: channel c is at every column c + C·position."""

    class Tiled(Flattened):
        def forward(self, x):
            return self.out(self.hidden(self.conv(x).permute(0, 2, 3, 1).reshape(len(x), -1)))

    graph = check_function_is_kept(Tiled(), images(2, 3, 6, 6))
    assert {m.offset for m in members(graph, "conv") if m.path == "hidden.weight"} == set(range(0, 144, 4))


def test_channels_with_unequal_columns_are_not_exchanged():
    """The first channel has 6 of its 36 columns left: it moves with nobody."""
    graph = check_function_is_kept(Rearranged(lambda x: x.flatten(1)[:, 30:]), images(2, 3, 6, 6))
    assert {(g.name, g.width) for g in graph.groups} >= {("conv[0:1]", 1), ("conv[1:4]", 3)}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1)[:, 18:54],  # the lower half of the first channel, the upper half of the second
        lambda x: torch.cat([(x[:, ::2] + x[:, 1::2]).flatten(1), x[:, 1:3].flatten(1)], 1),  # pairs, and two halves
        lambda x: x.flatten(1).view(-1, 9, 16).transpose(1, 2),  # cut across channels
        lambda x: x.flatten(1)[:, 18:90] + x.flatten(1)[:, 54:126],
    ],
)
def test_parts_of_channels_are_not_exchanged(function):
    """As many entries, but not the same part of the channel."""
    check_function_is_kept(Rearranged(function), images(2, 3, 6, 6))


def test_filters_of_one_depthwise_channel_are_not_mixed_up():
    """Of two filters a channel, the slice holds the second of channel 0 and the first of channel 1."""

    class Sliced(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)[:, 1:3]

    check_function_is_kept(Between(Sliced(8, 16, 3, groups=8), 2), images(1, 3, 6, 6))


class Dense(nn.Module):
    """Two layers of a DenseNet: each reads the concatenation of all before it, through its own batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.norm3, self.linear = nn.BatchNorm2d(14), nn.Linear(14, 5)

    def forward(self, x):
        a = self.stem(x)
        b = self.conv1(torch.relu(self.norm1(a)))
        c = self.conv2(torch.relu(self.norm2(torch.cat([a, b], 1))))
        d = torch.relu(self.norm3(torch.cat([a, b, c], 1)))
        return self.linear(d.mean((2, 3)))


def test_concatenation_gives_offsets():
    graph = check_function_is_kept(Dense(), images(2, 3, 6, 6))
    assert {g.name: g.width for g in graph.groups if not g.fixed} == {"stem": 6, "conv1": 4, "conv2": 4}
    assert {(m.path, m.axis, m.offset) for m in members(graph, "conv1")} >= {
        ("conv1.weight", 0, 0), ("norm2.running_var", 0, 6), ("conv2.weight", 1, 6), ("linear.weight", 1, 6)
    }  # fmt: skip


def test_residual_branches_share_a_group():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
            self.out = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.out(x + self.b(self.a(x)))

    graph = check_function_is_kept(Residual(), images(1, 3, 4, 4))
    assert {m.path for m in members(graph, "stem") if m.produces} == {"stem.weight", "b.weight"}
    assert {m.path for m in members(graph, "a") if m.produces} == {"a.weight"}


def test_squeeze_excite_shares_the_group_it_gates():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.fc1, self.fc2 = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.out(x * torch.sigmoid(self.fc2(torch.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))))

    graph = check_function_is_kept(Gated(), images(1, 3, 4, 4))
    assert {(m.path, m.axis) for m in members(graph, "conv")} == {
        ("conv.weight", 0), ("conv.bias", 0), ("fc2.weight", 0), ("fc2.bias", 0), ("fc1.weight", 1), ("out.weight", 1)
    }  # fmt: skip


def test_grouped_convolution_moves_filters_within_their_group_only():
    graph = check_function_is_kept(Between(nn.Conv2d(8, 12, 3, groups=2), 12), images(1, 3, 6, 6))
    groups = {g.name: g for g in graph.groups}
    assert groups["first"].fixed
    assert not groups["function[0:6]"].fixed
    assert groups["function[6:12]"].width == 6


def test_depthwise_filters_follow_in_pairs():
    graph = check_function_is_kept(Between(nn.Conv2d(8, 16, 3, groups=8), 16), images(1, 3, 6, 6))
    assert Member("function.weight", 0, 0, 2) in members(graph, "first")
    assert Member("last.weight", 1, 0, 2) in members(graph, "first")


@pytest.mark.parametrize("tied", [False, True])
def test_shared_module_ties_its_channels(tied):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.again = nn.Conv2d(8, 8, 3, padding=1)
            if tied:
                self.again.weight = self.conv.weight
            self.out = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(self.stem(x))))
            return self.out(self.again(x) if tied else self.norm(self.conv(x)))

    graph = check_function_is_kept(Shared(), images(1, 3, 6, 6))
    # conv reads stem's channels and its own, so both are the same channels
    assert {m.path for m in members(graph, "stem") if m.produces} == {"stem.weight", "conv.weight"}


def test_outputs_and_inputs_keep_their_order():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            features = self.b(self.a(x))
            return {"features": features, "scores": self.c(features)}

    graph = DependencyGraph.trace(TwoHeads().double(), images(1, 3, 4, 4))
    assert {g.name: g.fixed for g in graph.groups} == {"input of a": True, "a": False, "b": True, "c": True}
    assert graph.stems == ("a.weight",)


def test_learned_vectors_move_with_the_channels_they_meet():
    class Scaled(Between):
        def __init__(self):
            super().__init__(self.scale)
            self.gamma = nn.Parameter(torch.rand(8, 1, 1))

        def scale(self, x):
            return x * self.gamma

    graph = check_function_is_kept(Scaled(), images(1, 3, 6, 6))
    (first,) = (g for g in graph.groups if g.name == "first")
    assert not first.fixed
    assert Member("gamma", 0) in first.members


def test_padding_never_mixes_old_and_new_channels():
    """Option A: the narrow stage has one order, which the wide stage repeats in its middle."""

    class Widened(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.c(torch.relu(self.b(x) + F.pad(x, (0, 0, 0, 0, 2, 2))))

    graph = check_function_is_kept(Widened(), images(1, 3, 4, 4))
    assert {g.name: g.width for g in graph.groups if not g.fixed} == {"a": 4, "b[0:2]": 2, "b[6:8]": 2}
    assert Member("b.weight", 0, 2, 1, True) in members(graph, "a")


@pytest.mark.parametrize(
    ("layer", "names", "moves", "leaves"),
    [
        (nn.ConvTranspose2d(8, 6, 3), ["first"], True, True),
        (nn.ConvTranspose2d(8, 6, 2, 2, groups=2), ["first"], False, False),
        (nn.GroupNorm(2, 8), ["first[0:4]", "first[4:8]"], True, False),
        (nn.GroupNorm(8, 8), ["first"], True, True),
        (nn.PReLU(8), ["first"], True, True),
        (nn.PReLU(), ["first"], True, True),
        (nn.InstanceNorm2d(8, affine=True), ["first"], True, True),
        (ChannelsLast(nn.LayerNorm(8)), ["first"], True, False),
    ],
)
def test_channels_move_and_leave_through_layers(layer, names, moves, leaves):
    channels = getattr(layer, "out_channels", 8)
    graph = check_function_is_kept(Between(layer, channels), images(1, 3, 6, 6))
    assert all(next(g for g in graph.groups if g.name == name).fixed is not moves for name in names)
    assert next(s for s in graph.sets if s.name == "first").fixed is not leaves
    assert not graph.note


@pytest.mark.parametrize("make", [lambda: nn.PReLU(8), lambda: nn.InstanceNorm2d(8, affine=True)])
def test_slopes_and_norms_leave_with_their_channels(make):
    model = Between(make(), 8).double().eval()
    graph = DependencyGraph.trace(model, images(1, 3, 6, 6))
    keep = torch.arange(8) % 2 == 0
    with torch.no_grad():
        model.last.weight[:, ~keep] = 0
        before = model(images(1, 3, 6, 6))
        surgery.cut(model, graph, {"first": keep})
        assert torch.allclose(model(images(1, 3, 6, 6)), before)
    assert len(model.function.weight) == 4
    assert getattr(model.function, "num_parameters", None) == 4 or model.function.num_features == 4


CONSTANT = torch.ones(8, 8, 1, 1, dtype=torch.double)
UNKNOWN = [
    (lambda x: torch.cumsum(x, 1), "aten.cumsum.default"),
    (lambda x: x.argsort(1).to(x) * x, "aten.argsort.default"),
    (lambda x: x.max(1, True)[1].to(x) + x, "tells which channel is the largest"),
    (lambda x: x.transpose(1, 2).reshape(x.shape[0], 8, 6, 6), "aten.conv2d.default in last: reads axis 1 as channels"),
    (lambda x: F.conv2d(x, CONSTANT), "its weight is computed, not stored"),
    (lambda x: x.mean((2, 3), True) * x.mean((2, 3)).view(-1, 1, 8, 1), "vary along different axes"),
    (lambda x: torch.einsum("bchw,dc->bdhw", x, CONSTANT[:, :, 0, 0]), "aten.einsum.default"),
    (lambda x: (x.flatten(2).mT @ x.flatten(2)).mean((1, 2)).view(-1, 1, 1, 1) * x, "aten.matmul.default"),
]


@pytest.mark.parametrize(("function", "named"), UNKNOWN)
def test_what_cannot_be_followed_is_frozen_or_where_strict_refused_by_name(function, named):
    graph = check_function_is_kept(Between(function), images(2, 3, 6, 6))
    assert next(g for g in graph.groups if g.name == "first").fixed
    assert next(s for s in graph.sets if s.name == "first").fixed
    assert graph.note.endswith("1 layer keeps all channels, in place: first")
    assert "\n" not in graph.note
    with pytest.raises(UnsupportedOperator, match=named) as caught:
        DependencyGraph.trace(Between(function).double(), images(1, 3, 6, 6), strict=True)
    assert "\n" not in str(caught.value)


def test_layers_behind_an_unknown_operator_are_free():
    class Behind(Between):
        def __init__(self):
            super().__init__(lambda x: torch.cumsum(x, 1))
            self.after, self.out = nn.Conv2d(5, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.out(self.after(super().forward(x)).relu())

    graph = check_function_is_kept(Behind(), images(2, 3, 6, 6))
    assert {s.name for s in graph.sets if not s.fixed} == {"last", "after"}
    assert graph.note == (
        "no rule follows channels through aten.cumsum.default (the network itself): 1 layer keeps all channels, in "
        "place: first"
    )


def test_a_model_that_does_not_fit_its_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"Between cannot be traced on an input of shape \(1, 4, 6, 6\)") as caught:
        DependencyGraph.trace(Between(torch.relu).double(), images(1, 4, 6, 6))
    assert "\n" not in str(caught.value)


def test_tracing_leaves_the_model_as_it_was():
    model = Between(torch.relu).double().train()
    model.norm.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    DependencyGraph.trace(model, images(1, 3, 6, 6))
    assert [model.training, model.first.training, model.norm.training] == [True, True, False]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
