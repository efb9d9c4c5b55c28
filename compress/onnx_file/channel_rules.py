"""How channels pass through ONNX operators. What is not here keeps the channels that reach it in their places."""

import math
from collections.abc import Callable, Sequence

import onnx
import torch

from kerf.compress.onnx_file.channels import Followed, Line, Unfollowed
from kerf.deploy.frontend.onnx_graph import attributes

Rule = Callable[[onnx.NodeProto, Followed], None]


def conv(node: onnx.NodeProto, seen: Followed) -> None:
    weight = node.input[1]
    if not seen.constant(weight):
        raise Unfollowed
    (outputs, inputs), groups = seen.graph.constants[weight].shape[:2], attributes(node).get("group", 1)
    line = _along(seen, node.input[0], 1)
    if groups == 1:
        if line:
            seen.bind(weight, 1, line.labels)
        made = seen.made(weight, 0)
    elif groups == outputs and inputs == 1 and line:  # depthwise
        made = seen.bind(weight, 0, line.labels)
    elif line:
        raise Unfollowed
    else:
        return
    for bias in filter(None, node.input[2:]):
        seen.bind(bias, 0, made)
    seen.place(node.output[0], 1, made)


def linear(node: onnx.NodeProto, seen: Followed) -> None:
    """Gemm, and MatMul with a stored weight: channels lie along the last axis."""
    x, weight = node.input[:2]
    given = attributes(node)
    if not seen.constant(weight) or seen.graph.constants[weight].ndim != 2 or given.get("transA", 0):
        raise Unfollowed
    filters = 0 if given.get("transB", 0) else 1
    last = len(seen.sizes(x)) - 1
    if line := _along(seen, x, last):
        seen.bind(weight, 1 - filters, line.labels)
    made = seen.made(weight, filters)
    for bias in filter(None, node.input[2:]):
        if not seen.constant(bias):
            raise Unfollowed
        shape = seen.graph.constants[bias].shape
        if shape and shape[-1] != 1:
            seen.bind(bias, len(shape) - 1, made)
    seen.place(node.output[0], last, made)


def same(node: onnx.NodeProto, seen: Followed) -> None:
    """Each number becomes another, whatever channel it is of; or channel by channel, over positions."""
    if any(name in seen.lines for name in node.input[1:]) or len([n for n in node.output if n]) > 1:
        raise Unfollowed
    if line := seen.lines.get(node.input[0]):
        seen.place(node.output[0], line.axis, line.labels)


def padded(node: onnx.NodeProto, seen: Followed) -> None:
    """Channels that are added are alike, and may change places."""
    line = seen.lines.get(node.input[0])
    if line is None:
        return
    rank, given = len(seen.sizes(node.input[0])), attributes(node)
    if given.get("mode", b"constant") != b"constant" or (len(node.input) > 3 and node.input[3]):
        raise Unfollowed
    pads = _numbers(seen, node.input[1]) if len(node.input) > 1 else given["pads"]
    before, after = pads[line.axis], pads[rank + line.axis]
    if min(before, after) < 0:
        raise Unfollowed
    fresh = seen.channels.fresh
    seen.place(node.output[0], line.axis, torch.cat([fresh(before), line.labels, fresh(after)]))


def sliced(node: onnx.NodeProto, seen: Followed) -> None:
    line = seen.lines.get(node.input[0])
    if line is None:
        return
    rank, given = len(seen.sizes(node.input[0])), attributes(node)
    if "starts" in given:  # before opset 10
        starts, ends, axes, steps = given["starts"], given["ends"], given.get("axes"), None
    else:
        starts, ends, axes, steps = (_numbers(seen, n) if n else None for n in (*node.input[1:], "", "")[:4])
    places = [axis % rank for axis in axes or range(len(starts or ()))]
    labels = line.labels
    if line.axis in places:
        i = places.index(line.axis)
        if steps and steps[i] < 1:
            raise Unfollowed
        labels = labels[slice(starts[i], ends[i], steps[i] if steps else 1)]
    seen.place(node.output[0], line.axis, labels)


def spatial(node: onnx.NodeProto, seen: Followed) -> None:
    """Positions are averaged, moved or made: (B, C, …), C as it was."""
    line = _along(seen, node.input[0], 1)
    if line and seen.sizes(node.output[0])[1] != len(line.labels):
        raise Unfollowed
    same(node, seen)


def norm(node: onnx.NodeProto, seen: Followed) -> None:
    line = _along(seen, node.input[0], 1)
    if line is None:
        return
    if attributes(node).get("training_mode", 0):
        raise Unfollowed
    for name in node.input[1:]:
        seen.bind(name, 0, line.labels)
    same(node, seen)


def elementwise(node: onnx.NodeProto, seen: Followed) -> None:
    """Of tensors that are spread to one shape, aligned at the last axis."""
    lines = {name: seen.lines[name] for name in node.input if name in seen.lines}
    if not lines:
        return
    rank = {name: len(seen.sizes(name)) for name in node.input}
    most = max(rank.values())
    places = {line.axis - rank[name] for name, line in lines.items()}  # counted from the end
    if len(places) > 1:
        raise Unfollowed
    place = places.pop()
    wide = {name for name in rank if -place <= rank[name] and seen.sizes(name)[place] != 1}
    labels = [lines[name].labels for name in node.input if name in wide and name in lines]
    if not labels:
        return  # one channel, which is spread over others that stay
    made = seen.join(labels)
    for name in node.input:
        if name in wide and name not in lines:
            seen.bind(name, rank[name] + place, made)
    seen.place(node.output[0], most + place, made)


def reduced(node: onnx.NodeProto, seen: Followed) -> None:
    """Over axes: what is summed over channels does not know their order."""
    line = seen.lines.get(node.input[0])
    if line is None:
        return
    rank, given = len(seen.sizes(node.input[0])), attributes(node)
    axes = given.get("axes")
    if len(node.input) > 1 and node.input[1]:
        axes = _numbers(seen, node.input[1])
    if axes is None and given.get("noop_with_empty_axes", 0):
        raise Unfollowed
    over = set(range(rank)) if axes is None else {axis % rank for axis in axes}
    if line.axis not in over:
        lost = 0 if given.get("keepdims", 1) else sum(axis < line.axis for axis in over)
        seen.place(node.output[0], line.axis - lost, line.labels)


def concat(node: onnx.NodeProto, seen: Followed) -> None:
    lines = [seen.lines.get(name) for name in node.input]
    if not any(lines):
        return
    rank = len(seen.sizes(node.input[0]))
    axis, places = attributes(node)["axis"] % rank, {line.axis for line in lines if line}
    if len(places) > 1:
        raise Unfollowed
    place = places.pop()
    if axis != place:
        if not all(lines):
            raise Unfollowed
        seen.place(node.output[0], place, seen.join(line.labels for line in lines if line))
        return
    parts = [line.labels if line else seen.still(_size(seen, name, axis)) for name, line in zip(node.input, lines)]
    seen.place(node.output[0], axis, torch.cat(parts))


def split(node: onnx.NodeProto, seen: Followed) -> None:
    line = seen.lines.get(node.input[0])
    if line is None:
        return
    cut = attributes(node).get("axis", 0) % len(seen.sizes(node.input[0])) == line.axis
    start = 0
    for name in node.output:
        stop = start + _size(seen, name, line.axis) if cut else len(line.labels)
        seen.place(name, line.axis, line.labels[start:stop])
        start = stop if cut else 0


def transposed(node: onnx.NodeProto, seen: Followed) -> None:
    if line := seen.lines.get(node.input[0]):
        rank = len(seen.sizes(node.input[0]))
        order = list(attributes(node).get("perm", range(rank)[::-1]))
        seen.place(node.output[0], order.index(line.axis), line.labels)


def reshaped(node: onnx.NodeProto, seen: Followed) -> None:
    """Where channels keep an axis, or the axes behind them join it: then a channel is several entries there."""
    line = seen.lines.get(node.input[0])
    if line is None:
        return
    before, after = _known(seen.sizes(node.input[0])), _known(seen.sizes(node.output[0]))
    if math.prod(before) != math.prod(after):
        raise Unfollowed
    front, count, behind = (math.prod(p) for p in (before[: line.axis], before[line.axis : line.axis + 1],
                                                   before[line.axis + 1 :]))  # fmt: skip
    for axis, size in enumerate(after):
        if math.prod(after[:axis]) == front and size == count > 1:
            seen.place(node.output[0], axis, line.labels)
            return
        if math.prod(after[:axis]) == front and size == count * behind > 1:
            seen.place(node.output[0], axis, seen.channels.within(line.labels.repeat_interleave(behind)))
            return
    raise Unfollowed


def nothing(node: onnx.NodeProto, seen: Followed) -> None:
    """The result is a shape."""


def _along(seen: Followed, name: str, axis: int) -> Line | None:
    """Raises Unfollowed where channels lie along another axis."""
    line = seen.lines.get(name)
    if line and line.axis != axis:
        raise Unfollowed
    return line


def _numbers(seen: Followed, name: str) -> Sequence[int]:
    if not seen.constant(name):
        raise Unfollowed
    return seen.graph.constants[name].flatten().tolist()


def _size(seen: Followed, name: str, axis: int) -> int:
    size = seen.sizes(name)[axis]
    if not isinstance(size, int):
        raise Unfollowed
    return size


def _known(shape: Sequence[int | str]) -> list[int]:
    """Sizes, where at most the first is open: with equal products of the others it is the same before and after."""
    if any(not isinstance(size, int) for size in shape[1:]):
        raise Unfollowed
    return [size if isinstance(size, int) else -1 for size in shape]


_SAME = (
    *("Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Clip", "Softplus"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Softsign", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Sin"),
    *("Cos", "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Identity", "Dropout", "Cast"),
)
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu")
_REDUCED = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare")

RULES: dict[str, Rule] = {
    "Conv": conv, "Gemm": linear, "MatMul": linear, "BatchNormalization": norm, "InstanceNormalization": norm,
    "Concat": concat, "Split": split, "Pad": padded, "Slice": sliced, "Transpose": transposed,
    "Shape": nothing, "Size": nothing,
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys((*_POOLS, "Resize", "Upsample"), spatial),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **{f"Reduce{how}": reduced for how in _REDUCED},
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshaped),
}  # fmt: skip
