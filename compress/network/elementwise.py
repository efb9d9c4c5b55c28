"""How channels pass through operators that take each number by itself, and through those that mix channels evenly."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kerf.compress.network.labels import FROZEN, Call, Channels, Parameter, along, compact, spread, varying

aten = torch.ops.aten
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)


def unary(call: Call, channels: Channels) -> Tensor:
    """Given: each number by itself. Result: the same channels."""
    return call.args[0]


def elementwise(call: Call, channels: Channels) -> Tensor:
    """Sums, products, choices. Channels that meet are one: they can only move together."""
    given = [a for a in call.args[:3] if isinstance(a, Tensor | Parameter)]
    ndim = len(call.shape)
    labels = [a.view([1] * (ndim - a.ndim) + list(a.shape)) for a in given if isinstance(a, Tensor)]
    labels += [
        found for a in given if isinstance(a, Parameter) if (found := _stored(a, labels, ndim, channels)) is not None
    ]
    result = labels[0]
    for other in labels[1:]:
        result = _meet(call, channels, result, other)
    return compact(result).expand(call.shape)


def _stored(parameter: Parameter, others: list[Tensor], ndim: int, channels: Channels) -> Tensor | None:
    """Labels of a stored tensor among activations: it follows the channels it meets, and has its own for positions."""
    axes = {axis for labels in others for axis in varying(labels)}
    offset = ndim - len(parameter.shape)
    sizes = [1] * offset + list(parameter.shape)
    axis = min(axes, default=0)
    if len(axes) == 1 and sizes[axis] > 1:
        line = channels.axes.get((parameter.path, axis - offset))
        line = channels.fresh(sizes[axis]) if line is None else line
        return spread(channels.bind(parameter.path, axis - offset, line), axis, torch.Size(sizes))
    if axes and all(sizes[axis] == 1 for axis in axes):  # another number at every position, for all channels the same
        channels.stored.add(parameter.path)
        return None
    long = [i for i, size in enumerate(sizes) if size > 1]
    if not axes and len(long) == 1 and all(o.shape[long[0]] == 1 and (o != FROZEN).all() for o in others):
        labels = channels.vector(parameter)
        return None if labels is None else labels.view(sizes)
    channels.stored.add(parameter.path)
    return channels.frozen(torch.Size(sizes)) if others or long else channels.uniform(torch.Size(sizes))


def _meet(call: Call, channels: Channels, first: Tensor, second: Tensor) -> Tensor:
    """Labels of what two operands give."""
    a, b = compact(first), compact(second)
    if call.node.target in PRODUCTS and a.numel() > 1 and b.numel() > 1:
        sizes = [max(o.shape[2:], default=1) for o in (first, second)]
        for labels, size in zip((a, b), sizes):
            if size == 1 < max(sizes):
                channels.gates.update(labels.flatten().tolist())
    shape = torch.broadcast_shapes(first.shape, second.shape)
    if a.numel() == b.numel() == 1 and FROZEN not in (int(a), int(b)):
        channels.join(a, b)
        return a.expand(shape)
    if a.numel() > 1 and b.numel() > 1 and varying(first) == varying(second):
        channels.join(a, b)
        return torch.where(b == FROZEN, b, a).expand(shape)
    if a.numel() > 1 and b.numel() > 1:
        raise call.refuse("its operands vary along different axes")
    same, other = (a, second) if a.numel() == 1 else (b, first)  # `same` says nothing of the entries of its operand
    operand = first if a.numel() == 1 else second
    if any(operand.shape[axis] > 1 for axis in varying(other)):  # another number for each channel
        channels.hold(other)
        return channels.frozen(shape)
    if not varying(other):  # two that say nothing, one of them frozen
        channels.hold(same, compact(other))
        return channels.frozen(shape)
    # one operand is the same for all channels, as a spatial attention map is: it ties none of them
    return compact(other).expand(shape)


def pool(call: Call, channels: Channels) -> Any:
    """Every channel by itself, over its positions."""
    labels = call.args[0]
    if any(axis != 1 for axis in varying(labels)):
        raise call.refuse("pools along an axis that holds channels")

    def pooled(shape: torch.Size) -> Tensor:
        return compact(labels).expand(shape)

    if call.result is not None:
        return pooled(call.shape)
    return [pooled(value.shape) for value in call.node.meta["val"]]  # and where the maximum was


def normalise(call: Call, channels: Channels) -> Tensor:
    """softmax and its like: evenly over the channels, if they are along that axis, so that none may leave."""
    labels = call.args[0]
    if call.args[1] % labels.ndim in varying(labels):
        _count(call, channels, labels)
    return labels


def reduce(place: int) -> Callable[[Call, Channels], Any]:
    """Sums, averages, maxima over the axes that argument `place` names. Over channels: none of them may leave."""

    def rule(call: Call, channels: Channels) -> Any:
        labels = call.args[0]
        axes = _axes(call.arg(place), labels.ndim)
        gone = [axis for axis in varying(labels) if axis in axes]
        if gone:
            _count(call, channels, labels)
            if call.result is None and any(u.args[1] == 1 and u.users for u in call.node.users):
                raise call.refuse("tells which channel is the largest")

        def reduced(shape: torch.Size) -> Tensor:
            if gone:
                return channels.uniform(shape)
            kept = labels[tuple(slice(0, 1) if i in axes else slice(None) for i in range(labels.ndim))]
            return kept.reshape(shape)

        if call.result is not None:
            return reduced(call.shape)
        return [reduced(value.shape) for value in call.node.meta["val"]]

    return rule


def _axes(given: Any, ndim: int) -> set[int]:
    if given is None or given == []:
        return set(range(ndim))
    return {axis % ndim for axis in ([given] if isinstance(given, int) else given)}


def _count(call: Call, channels: Channels, labels: Tensor) -> None:
    """Something is taken over all channels: they may move, but not leave."""
    if len(varying(labels)) > 1:
        raise call.refuse("reads channels that a reshape has mixed with positions")
    channels.counted.update(along(call, channels, labels, varying(labels)[0]).tolist())


def constant(call: Call, channels: Channels) -> Tensor:
    """Made of shapes alone, whatever tensors are among the arguments."""
    return channels.frozen(call.shape)


def each(ops: Iterable[Any], rule: Callable[[Call, Channels], Any]) -> dict[Any, Callable[[Call, Channels], Any]]:
    return dict.fromkeys(ops, rule)
