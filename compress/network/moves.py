"""How channels pass through operators that only move numbers: they are applied to the labels themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kerf.compress.network.labels import FROZEN, Call, Channels, along, compact, spread, varying

aten = torch.ops.aten
Rule = Callable[[Call, Channels], Any]


def move(function: Callable[..., Any]) -> Rule:
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
    sizes = [n for n in after.shape if n > 1]
    if sum(n > 1 for n in before.shape) == 1 and len(sizes) == 2:
        channels.tie(after.reshape(sizes))


def like(call: Call, channels: Channels) -> Tensor:
    """view_as, expand_as: the second tensor gives a shape alone."""
    labels = call.args[0]
    if labels.numel() == call.shape.numel():
        return move(torch.reshape)(Call(call.node, [labels, call.shape], call.result), channels)
    return labels.expand(call.shape)


def divide(function: Callable[..., Any]) -> Rule:
    """An operator that takes some of the channels. The code says which, so none may leave; but equal chunks shrink."""

    def rule(call: Call, channels: Channels) -> Any:
        source = call.args[0]
        parts = function(*call.args, **call.node.kwargs)
        lines = [compact(part).flatten() for part in (parts if isinstance(parts, list | tuple) else [parts])]
        whole = compact(source).flatten()
        if all(torch.equal(line, whole) for line in lines):  # cuts along another axis
            return parts
        if function is aten.chunk.default and len({line.shape for line in lines}) == 1:
            channels.tie(torch.stack(lines))
        else:
            channels.counted.update(whole.tolist())
        return parts

    return rule


def glu(call: Call, channels: Channels) -> Tensor:
    """Half of the channels, each times what the other half makes of its gate: pairs move and leave together."""
    parts = divide(aten.chunk.default)(Call(call.node, [call.args[0], 2, call.arg(1, -1)], None), channels)
    if varying(call.args[0]):
        channels.join(compact(parts[0]), compact(parts[1]))
    return parts[0]


def concatenate(call: Call, channels: Channels) -> Tensor:
    """Along C, without spelling out H × W equal labels."""
    tensors, axis = call.args[0], call.arg(1, 0)
    axis %= tensors[0].ndim
    lines = [compact(t.transpose(0, axis)) for t in tensors]
    if all(line.numel() == line.shape[0] == t.shape[axis] for line, t in zip(lines, tensors)):
        return spread(torch.cat([line.flatten() for line in lines]), axis, call.shape)
    across = [varying(t) for t in tensors]
    if all(axes == across[0] and axes and axis not in axes for axes in across):
        for other in tensors[1:]:  # along positions, as a class token before the others
            channels.join(compact(tensors[0]), compact(other))
        return compact(tensors[0]).expand(call.shape)
    if any(axis not in axes and t.shape[axis] > 1 for axes, t in zip(across, tensors)):
        return _lines_of_many(call, channels, tensors, axis)
    return torch.cat(tensors, axis)


def _lines_of_many(call: Call, channels: Channels, tensors: list[Tensor], axis: int) -> Tensor:
    """Some tensors have one label for several entries along the axis: constants, frozen or averaged ones."""
    whole = torch.cat(tensors, axis)
    line = compact(whole)
    if len(line.unique()) == line.numel():
        return line.expand(whole.shape)
    return channels.within(line).expand(whole.shape)


def stack(call: Call, channels: Channels) -> Tensor:
    """On a new axis: channels stand there several times, one beside the other."""
    tensors, axis = call.args[0], call.arg(1, 0)
    across = [varying(t) for t in tensors]
    if across[0] and all(axes == across[0] for axes in across):
        for other in tensors[1:]:  # whatever reads the new axis as channels has to see all of them alike
            channels.join(compact(tensors[0]), compact(other))
        return compact(tensors[0]).unsqueeze(axis).expand(call.shape)
    return torch.stack(tensors, axis)


def pad(call: Call, channels: Channels) -> Tensor:
    """New channels hold one constant, so they may move among themselves, and with what they are added to.

    The old ones keep their place between them: labels say so, since the narrow tensor and the padded one both count.
    """
    labels, amounts = call.args[0], call.args[1]
    axes = varying(labels)
    axis = axes[0] if len(axes) == 1 else 1
    if any(amounts[2 * (labels.ndim - 1) :]):
        raise call.refuse("pads the batch")
    place = 2 * (labels.ndim - 1 - axis)  # amounts begin with the last axis
    before, after = amounts[place : place + 2] or (0, 0)
    if len(axes) > 1:
        raise call.refuse("pads channels that a reshape has mixed with positions")
    if not before and not after:
        return compact(labels).expand(call.shape)
    line = along(call, channels, labels, axis)
    if call.arg(2, "constant") != "constant":
        raise call.refuse(f"pads channels by {call.arg(2)}")
    if before < 0 or after < 0:
        channels.counted.update(line.tolist())
        line = line[max(0, -before) : len(line) - max(0, -after)]
    new = channels.fresh(max(0, before)), channels.fresh(max(0, after))
    if call.arg(3) or call.module in channels.pads:  # not zero, or a second padding of other channels
        channels.counted.update(torch.cat(new).tolist())
    elif before > 0 or after > 0:
        channels.pads[call.module] = new
    return spread(torch.cat([new[0], line, new[1]]), axis, call.shape)


def pixel_shuffle(call: Call, channels: Channels) -> Tensor:
    """(B, C·r², H, W) -> (B, C, r·H, r·W): r² filters make one channel; they leave together, and none moves."""
    inputs = along(call, channels, call.args[0], 1)
    parts = inputs.view(-1, call.args[1] ** 2)  # (C, r²)
    made = channels.fresh(len(parts))
    channels.ordered.update([*inputs.tolist(), *made.tolist()])
    channels.tie(torch.cat([made[None], parts.T]))
    if (parts == FROZEN).any() or not channels.held.isdisjoint(inputs.tolist()):
        channels.hold(made)
    return spread(made, 1, call.shape)


def pixel_unshuffle(call: Call, channels: Channels) -> Tensor:
    """(B, C, r·H, r·W) -> (B, C·r², H, W): a channel becomes r² entries, which stay side by side."""
    inputs = along(call, channels, call.args[0], 1)
    return spread(channels.within(inputs.repeat_interleave(call.args[1] ** 2)), 1, call.shape)


def channel_shuffle(call: Call, channels: Channels) -> Tensor:
    """As its spelling by view, transpose and view."""
    line, groups = along(call, channels, call.args[0], 1), call.args[1]
    rows = line.view(groups, -1)
    channels.tie(rows)
    return spread(rows.T.flatten(), 1, call.shape)


def shift(function: Callable[..., Tensor]) -> Rule:
    """roll, flip: positions change places, which labels do not tell; channels would be read in another order."""

    def rule(call: Call, channels: Channels) -> Tensor:
        labels = call.args[0]
        axes = call.arg(2 if function is torch.roll else 1, ())
        if {a % labels.ndim for a in ([axes] if isinstance(axes, int) else axes)}.isdisjoint(varying(labels)):
            return labels
        return function(*call.args)

    return rule
