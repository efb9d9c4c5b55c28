"""How channels pass through each ATen operator: one small rule per operator, and the table of them all.

Operators that only move numbers are applied to the labels themselves.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kerf.compress.network.labels import Call, Channels, along, compact, spread
from kerf.compress.network.layers import (
    batch_norm,
    conv2d,
    conv_transpose2d,
    group_norm,
    instance_norm,
    linear,
    prelu,
)

aten = torch.ops.aten


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
# these move their parameters along with the channels
READS_PARAMETERS = (conv2d, conv_transpose2d, linear, batch_norm, instance_norm, group_norm, prelu)

RULES: dict[Any, Callable[[Call, Channels], Any]] = {
    aten.conv2d.default: conv2d,
    aten.conv2d.padding: conv2d,
    aten.linear.default: linear,
    aten.conv_transpose2d.input: conv_transpose2d,
    aten.batch_norm.default: batch_norm,
    aten.instance_norm.default: instance_norm,
    aten.group_norm.default: group_norm,
    aten.prelu.default: prelu,
    **dict.fromkeys(
        (
            aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default,
            aten.relu6.default, aten.leaky_relu.default, aten.leaky_relu_.default,
            aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default,
            aten.sigmoid.default, aten.sigmoid_.default, aten.silu.default, aten.silu_.default,
            aten.elu.default, aten.elu_.default, aten.celu.default, aten.selu.default, aten.softplus.default,
            aten.mish.default, aten.log_sigmoid.default, aten.hardshrink.default, aten.softshrink.default,
            aten.threshold.default, aten.clamp.default, aten.clamp_.default, aten.clamp_min.default,
            aten.abs.default, aten.neg.default, aten.exp.default, aten.log.default, aten.sqrt.default,
            aten.rsqrt.default, aten.square.default, aten.pow.Tensor_Scalar, aten.rsub.Scalar,
            aten.feature_dropout.default, aten.to.dtype, aten._assert_tensor_metadata.default,
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
