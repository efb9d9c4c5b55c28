"""How channels pass through each ATen operator: one small rule per operator.

An activation of shape (B, C, H, W) is followed as a tensor of labels of the same shape, equal over the positions of a
channel. Operators that only move numbers are applied to the labels themselves; a convolution makes new labels; a sum
joins the labels that meet. Joined labels are one channel and move together: in one tensor a channel is one label for
all of H × W, after a flatten it is H·W labels. Labels that differ only along C are kept as stride-0 views.
"""

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from kerf.errors import Unsupported

aten = torch.ops.aten


class UnsupportedOperator(Unsupported):
    """An operator through which channels cannot be followed."""


@dataclass
class Channels:
    """What is known of all channels: which are one, which may not move, and where parameters carry them."""

    parent: list[int] = field(default_factory=list)  # union-find forest over labels; a tree is a channel
    fixed: set[int] = field(default_factory=set)  # may neither move nor leave
    ordered: set[int] = field(default_factory=set)  # may leave, may not move
    counted: set[int] = field(default_factory=set)  # may move, may not leave: their number is in the code
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # labels that leave together, pair by pair
    gates: set[int] = field(default_factory=set)  # labels of factors, as of squeeze-excitation
    columns: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # like axes, of grouped convolutions' inputs
    makers: dict[fx.Node, str] = field(default_factory=dict)  # convolution or linear call -> its weight
    norms: dict[str, str] = field(default_factory=dict)  # weight -> a parameter of the batch norm that alone reads it
    calls: Counter[str] = field(default_factory=Counter)  # how often a weight or a batch norm is used
    pads: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # module -> labels it adds before and after
    inputs: set[int] = field(default_factory=set)  # labels of the network input
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # (parameter path, axis) -> labels along it
    sequences: list[Tensor] = field(default_factory=list)  # labels in the order some tensor holds them
    producers: set[str] = field(default_factory=set)  # weights whose rows are filters, not per-channel factors
    stems: list[str] = field(default_factory=list)  # weights that read the network input

    def fresh(self, count: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def join(self, a: Tensor, b: Tensor) -> None:
        for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
            x, y = self.find(x), self.find(y)
            self.parent[max(x, y)] = min(x, y)

    def fix(self, labels: Tensor) -> None:
        self.fixed.update(labels.flatten().tolist())

    def tie(self, rows: Tensor) -> None:
        """(parts, n) labels: those in one column leave together, so that the parts stay equally large."""
        self.ties += [(rows[0], row) for row in rows[1:]]

    def within(self, labels: Tensor) -> Tensor:
        """Labels of their own for entries that are parts of a channel: which part it is must not be forgotten."""
        parts = self.fresh(labels.numel()).view(labels.shape)
        self.join(parts, labels)
        return parts

    def immovable(self, shape: torch.Size) -> Tensor:
        """Labels of a stored tensor that meets activations element by element: it stays, and so does what it meets."""
        labels = self.fresh(shape.numel()).view(shape)
        if labels.numel() > 1:
            self.fix(labels)
        return labels

    def bind(self, path: str, axis: int, labels: Tensor) -> Tensor:
        """One axis of a parameter carries these channels. A second use of the parameter makes both sets one."""
        known = self.axes.setdefault((path, axis), labels)
        if known is not labels:
            self.join(known, labels)
        return known


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer in the place of an argument."""

    path: str
    shape: torch.Size


@dataclass(frozen=True)
class Call:
    """One operator call: arguments with labels for tensors, and the shape of the result.

    Only the layers in READS_PARAMETERS get parameters as such.
    """

    node: fx.Node
    args: list[Any]
    shape: torch.Size | None  # None when the result is a list of tensors

    def arg(self, index: int, default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else default

    def refuse(self, why: str) -> UnsupportedOperator:
        return UnsupportedOperator(f"{self.node.target}{f' in {self.module}' if self.module else ''}: {why}")

    @property
    def module(self) -> str:
        """Path of the module whose forward makes the call; "" for the network itself."""
        modules = list((self.node.meta.get("nn_module_stack") or {}).values())
        return modules[-1][0] if modules else ""


def along(call: Call, labels: Tensor, axis: int) -> Tensor:
    """(n,) labels along one axis, if they are the same at every position of the others."""
    index: list[Any] = [0] * labels.ndim
    index[axis] = slice(None)
    line = labels[tuple(index)]
    if not torch.equal(labels, spread(line, axis, labels.shape)):
        raise call.refuse(f"reads axis {axis} as channels, but an earlier reshape put other things there")
    return line


def spread(line: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """(n,) labels as an activation of this shape, the same at every position of the other axes."""
    view = [1] * len(shape)
    view[axis] = -1
    return line.view(view).expand(shape)


def compact(labels: Tensor) -> Tensor:
    """Axes along which nothing changes, cut to size 1."""
    for axis in range(labels.ndim):
        first = labels.narrow(axis, 0, 1)
        if labels.stride(axis) == 0 or torch.equal(labels, first.expand_as(labels)):
            labels = first
    return labels


def unary(call: Call, channels: Channels) -> Tensor:
    """Given: each number by itself. Result: the same channels."""
    return call.args[0]


def binary(call: Call, channels: Channels) -> Tensor:
    """Sums and products. Channels that meet are one: they can only move together."""
    operands = [a for a in call.args[:2] if isinstance(a, Tensor)]
    if len(operands) == 1:  # with a number
        return operands[0]
    ndim = max(o.ndim for o in operands)
    a, b = (compact(o.view([1] * (ndim - o.ndim) + list(o.shape))) for o in operands)
    if a.numel() > 1 and b.numel() > 1:
        if call.node.target in PRODUCTS:
            sizes = [max(o.shape[2:], default=1) for o in operands]
            for labels, size in zip((a, b), sizes):
                if size == 1 < max(sizes):
                    channels.gates.update(labels.flatten().tolist())
        if {i for i, n in enumerate(a.shape) if n > 1} != {i for i, n in enumerate(b.shape) if n > 1}:
            raise call.refuse("its operands vary along different axes")
        channels.join(a, b)
    elif a.numel() == b.numel() == 1:
        channels.join(a, b)
    # else one operand is the same for all channels, as a spatial attention map is: it ties none of them
    return (a if a.numel() > 1 else b).expand(call.shape)


def weights_of(call: Call) -> tuple[Parameter, Parameter | None]:
    weight, bias = call.arg(1), call.arg(2)
    if not isinstance(weight, Parameter) or not isinstance(bias, Parameter | None):
        raise call.refuse("its weight is computed, not stored")
    return weight, bias


def conv2d(call: Call, channels: Channels) -> Tensor:
    """(B, I, H, W) -> (B, O, H', W'); weight (O, I / groups, kh, kw)."""
    weight, bias = weights_of(call)
    inputs = along(call, call.args[0], 1)
    groups, outputs = call.arg(6, 1), weight.shape[0]
    if groups == 1:
        channels.bind(weight.path, 1, inputs)
        made = produce(channels, weight, inputs)
    elif groups == len(inputs):  # depthwise: filters c·m to c·m + m - 1 belong to channel c, m = O / I
        made = inputs if outputs == groups else channels.within(inputs.repeat_interleave(outputs // groups))
        channels.bind(weight.path, 0, made)
    else:
        # Column j of the weight is another input channel in each group of rows, so inputs stay. A filter may move
        # among those that read the same inputs. As many leave from one group as from another.
        channels.ordered.update(inputs.tolist())
        channels.tie(inputs.view(groups, -1))
        channels.columns.setdefault((weight.path, 1), inputs[: len(inputs) // groups])
        made = produce(channels, weight, inputs)
        channels.sequences.extend(made.chunk(groups))
        channels.tie(made.view(groups, -1))
    if bias:
        channels.bind(bias.path, 0, made)
    channels.makers[call.node] = weight.path
    channels.calls[weight.path] += 1
    return spread(made, 1, call.shape)


def linear(call: Call, channels: Channels) -> Tensor:
    """(..., I) -> (..., O); weight (O, I)."""
    weight, bias = weights_of(call)
    inputs = along(call, call.args[0], -1)
    channels.bind(weight.path, 1, inputs)
    made = produce(channels, weight, inputs)
    if bias:
        channels.bind(bias.path, 0, made)
    return spread(made, -1, call.shape)


def produce(channels: Channels, weight: Parameter, inputs: Tensor) -> Tensor:
    """(O,) the channels a weight makes; a weight that is used twice makes the same ones."""
    channels.producers.add(weight.path)
    if not channels.inputs.isdisjoint(inputs.tolist()):
        channels.stems.append(weight.path)
    made = channels.axes.get((weight.path, 0))
    return channels.bind(weight.path, 0, channels.fresh(weight.shape[0]) if made is None else made)


def batch_norm(call: Call, channels: Channels) -> Tensor:
    """γ, β, μ, σ² of shape (C,) follow the channels."""
    labels = along(call, call.args[0], 1)
    for vector in (v for v in call.args[1:5] if v is not None):
        if not isinstance(vector, Parameter):
            raise call.refuse("its parameters are computed, not stored")
        channels.bind(vector.path, 0, labels)
        source = call.node.args[0]
        if source in channels.makers and len(source.users) == 1:
            channels.norms[channels.makers[source]] = vector.path
    channels.calls[vector.path] += 1
    return call.args[0]


def pool(call: Call, channels: Channels) -> Tensor:
    """Every channel by itself, over H and W."""
    return spread(along(call, call.args[0], 1), 1, call.shape)


def mean(call: Call, channels: Channels) -> Tensor:
    labels, axes = call.args[0], call.arg(1)
    axes = range(labels.ndim) if axes is None else [a % labels.ndim for a in axes]
    channel_axes = [i for i, n in enumerate(compact(labels).shape) if n > 1]
    if set(axes) & set(channel_axes or [1]):
        raise call.refuse("averages over channels")
    keep = [slice(0, 1) if i in axes else slice(None) for i in range(labels.ndim)]
    return labels[tuple(keep)].reshape(call.shape)


def pad(call: Call, channels: Channels) -> Tensor:
    """New channels hold one constant, so they may move among themselves, and with what they are added to.

    The old ones keep their place between them: labels say so, since the narrow tensor and the padded one both count.
    """
    labels, amounts = call.args[0], call.args[1]
    line = along(call, labels, 1)
    if len(amounts) > 2 * (labels.ndim - 1):
        raise call.refuse("pads the batch")
    before, after = amounts[2 * (labels.ndim - 2) :] or (0, 0)
    if (before or after) and call.arg(2, "constant") != "constant":
        raise call.refuse(f"pads channels by {call.arg(2)}")
    if before < 0 or after < 0:
        channels.counted.update(line.tolist())
        line = line[max(0, -before) : len(line) - max(0, -after)]
    new = channels.fresh(max(0, before)), channels.fresh(max(0, after))
    if call.arg(3) or call.module in channels.pads:  # not zero, or a second padding of other channels
        channels.counted.update(torch.cat(new).tolist())
    elif before > 0 or after > 0:
        channels.pads[call.module] = new
    return spread(torch.cat([new[0], line, new[1]]), 1, call.shape)


def move(function: Callable[..., Any]) -> Callable[[Call, Channels], Any]:
    """An operator that moves or drops numbers: labels go the same way.

    A reshape that merges C with H or W spreads a channel over several entries of an axis, which then get labels.
    """

    def rule(call: Call, channels: Channels) -> Any:
        moved = function(*call.args, **call.node.kwargs)
        if isinstance(moved, Tensor):
            line = compact(moved)
            if function is torch.reshape:
                _tie_split_axis(compact(call.args[0]), line, channels)
            if len(line.unique()) < line.numel():
                return channels.within(line).expand(moved.shape)
        return moved

    return rule


def _tie_split_axis(before: Tensor, after: Tensor, channels: Channels) -> None:
    """Channels laid out as rows, as a channel shuffle does: a column leaves as one."""
    varying = [n for n in after.shape if n > 1]
    if sum(n > 1 for n in before.shape) == 1 and len(varying) == 2:
        channels.tie(after.reshape(varying))


def divide(function: Callable[..., Any]) -> Callable[[Call, Channels], Any]:
    """An operator that takes some of the channels. The code says which, so none may leave; but equal chunks shrink."""

    def rule(call: Call, channels: Channels) -> Any:
        source = call.args[0]
        parts = function(*call.args, **call.node.kwargs)
        lines = [compact(part) for part in (parts if isinstance(parts, list | tuple) else [parts])]
        whole = compact(source)
        if all(torch.equal(line, whole) for line in lines):  # cuts along another axis
            return parts
        if function is aten.chunk.default and len({line.shape for line in lines}) == 1:
            channels.tie(torch.stack([line.flatten() for line in lines]))
        else:
            channels.counted.update(whole.flatten().tolist())
        return parts

    return rule


def concatenate(call: Call, channels: Channels) -> Tensor:
    """Along C, without spelling out H × W equal labels."""
    tensors, axis = call.args[0], call.arg(1, 0)
    axis %= tensors[0].ndim
    lines = [compact(t.transpose(0, axis)) for t in tensors]
    if all(line.numel() == line.shape[0] == t.shape[axis] for line, t in zip(lines, tensors)):
        return spread(torch.cat([line.flatten() for line in lines]), axis, call.shape)
    return torch.cat(tensors, axis)


PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
READS_PARAMETERS = (conv2d, linear, batch_norm)  # these move their parameters along with the channels

RULES: dict[Any, Callable[[Call, Channels], Any]] = {
    aten.conv2d.default: conv2d,
    aten.conv2d.padding: conv2d,
    aten.linear.default: linear,
    aten.batch_norm.default: batch_norm,
    **dict.fromkeys(
        (
            aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default,
            aten.relu6.default, aten.leaky_relu.default, aten.leaky_relu_.default,
            aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default,
            aten.sigmoid.default, aten.sigmoid_.default, aten.silu.default, aten.silu_.default,
            aten.gelu.default, aten.tanh.default, aten.dropout.default, aten.dropout_.default,
            aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default,
        ),
        unary,
    ),
    **dict.fromkeys(
        (
            aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor,
            aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor,
        ),
        binary,
    ),
    **dict.fromkeys(
        (
            aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
            aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
        ),
        pool,
    ),
    aten.mean.dim: mean,
    aten.pad.default: pad,
    aten.cat.default: concatenate,
    aten.view.default: move(torch.reshape),  # labels are stride-0 views, which aten.view cannot join
    aten.reshape.default: move(torch.reshape),
    operator.getitem: move(operator.getitem),
    **{
        op: move(op)
        for op in (
            aten.flatten.using_ints, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
            aten.squeeze.dim, aten.squeeze.dims, aten.expand.default,
        )
    },
    **{
        op: divide(op)
        for op in (
            aten.slice.Tensor, aten.select.int, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default,
        )
    },
}  # fmt: skip
