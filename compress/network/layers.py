"""How channels pass through layers that have parameters: these move along with the channels."""

from torch import Tensor, fx

from kerf.compress.network.labels import Call, Channels, Parameter, along, spread, varying


def weights_of(call: Call) -> tuple[Parameter, Parameter | Tensor | None]:
    """Weight and bias; a bias may be computed, and then is labels."""
    weight, bias = call.arg(1), call.arg(2)
    if not isinstance(weight, Parameter):
        raise call.refuse("its weight is computed, not stored")
    return weight, bias


def add_bias(channels: Channels, bias: Parameter | Tensor | None, made: Tensor) -> None:
    if isinstance(bias, Parameter):
        channels.bind(bias.path, 0, made)
    elif bias is not None:
        channels.hold(bias, made)


def conv(call: Call, channels: Channels) -> Tensor:
    """(B, I, H, W) -> (B, O, H', W'); weight (O, I / groups, kh, kw). Or with one, or three, axes of positions."""
    weight, bias = weights_of(call)
    if call.args[0].ndim != len(weight.shape):
        raise call.refuse("its input has no batch")
    inputs = along(call, channels, call.args[0], 1)
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
    add_bias(channels, bias, made)
    channels.makers[call.node] = weight.path
    channels.calls[weight.path] += 1
    return spread(made, 1, call.shape)


def linear(call: Call, channels: Channels) -> Tensor:
    """(..., I) -> (..., O); weight (O, I)."""
    weight, bias = weights_of(call)
    inputs = along(call, channels, call.args[0], -1)
    channels.bind(weight.path, 1, inputs)
    made = produce(channels, weight, inputs)
    add_bias(channels, bias, made)
    return spread(made, -1, call.shape)


def produce(channels: Channels, weight: Parameter, inputs: Tensor) -> Tensor:
    """(O,) the channels a weight makes; a weight that is used twice makes the same ones."""
    channels.producers.add(weight.path)
    if not channels.inputs.isdisjoint(inputs.tolist()):
        channels.stems.append(weight.path)
    made = channels.axes.get((weight.path, 0))
    return channels.bind(weight.path, 0, channels.fresh(weight.shape[0]) if made is None else made)


def conv_transpose(call: Call, channels: Channels) -> Tensor:
    """Its weight is (I, O / groups, kh, kw), inputs first. With several groups the channels on both sides stay."""
    weight, bias = weights_of(call)
    inputs = along(call, channels, call.args[0], 1)
    made = channels.axes.get((weight.path, 1))
    if made is None:
        made = channels.fresh(call.shape[1])
    if call.arg(6, 1) == 1:
        channels.transposed.add(weight.path)
        channels.bind(weight.path, 0, inputs)
        made = channels.bind(weight.path, 1, made)
    else:
        channels.fix(inputs)
        channels.fix(made)
    add_bias(channels, bias, made)
    channels.calls[weight.path] += 1
    return spread(made, 1, call.shape)


def batch_norm(call: Call, channels: Channels) -> Tensor:
    """γ, β, μ, σ² of shape (C,) follow the channels."""
    vectors = follow(call, channels, call.args[1:5])
    source = call.node.args[0]
    if vectors and isinstance(source, fx.Node) and source in channels.makers and len(source.users) == 1:
        channels.norms[channels.makers[source]] = vectors[-1].path
    if vectors:
        channels.calls[vectors[-1].path] += 1
    return call.args[0]


def instance_norm(call: Call, channels: Channels) -> Tensor:
    """As a batch norm, but its outputs have no statistics that a layer before it could be folded into."""
    follow(call, channels, call.args[1:5])
    return call.args[0]


def group_norm(call: Call, channels: Channels) -> Tensor:
    """A channel's statistics are those of its group: it may change places within it, and may not leave.

    With a group to each channel it is an instance norm.
    """
    labels, groups = along(call, channels, call.args[0], 1), call.arg(1)
    if groups < len(labels):
        channels.counted.update(labels.tolist())
        channels.sequences.extend(labels.chunk(groups))
    follow(call, channels, [call.arg(2), call.arg(3)], labels)
    return call.args[0]


def layer_norm(call: Call, channels: Channels) -> Tensor:
    """Statistics over the last axes. If channels are among them they may change places, and may not leave."""
    labels, depth = call.args[0], len(call.arg(1))
    stored = [v for v in (call.arg(2), call.arg(3)) if v is not None]
    within = [axis for axis in varying(labels) if axis >= labels.ndim - depth]
    if not within:
        channels.stored.update(v.path for v in stored if isinstance(v, Parameter))
        return labels
    if len(within) > 1 or varying(labels) != within or not all(isinstance(v, Parameter) for v in stored):
        raise call.refuse("normalises over channels and positions that a reshape has mixed")
    line = along(call, channels, labels, within[0])
    channels.counted.update(line.tolist())
    for vector in stored:
        channels.bind(vector.path, within[0] - labels.ndim + depth, line)
    return labels


def embedding(call: Call, channels: Channels) -> Tensor:
    """Weight (rows, C): each row is the channels of one word."""
    weight = call.arg(0)
    if not isinstance(weight, Parameter):
        raise call.refuse("its weight is computed, not stored")
    known = channels.axes.get((weight.path, 1))
    made = channels.bind(weight.path, 1, channels.fresh(weight.shape[1]) if known is None else known)
    return spread(made, -1, call.shape)


def prelu(call: Call, channels: Channels) -> Tensor:
    """A slope for each channel, or one for all."""
    if isinstance(call.args[1], Parameter) and call.args[1].shape.numel() == 1:
        return call.args[0]
    follow(call, channels, call.args[1:2])
    return call.args[0]


def follow(call: Call, channels: Channels, vectors: list[object], labels: Tensor | None = None) -> list[Parameter]:
    """Stored vectors (C,), one number for each channel of the input."""
    labels = along(call, channels, call.args[0], 1) if labels is None else labels
    found = []
    for vector in (v for v in vectors if v is not None):
        if not isinstance(vector, Parameter):
            raise call.refuse("its parameters are computed, not stored")
        channels.bind(vector.path, 0, labels)
        found.append(vector)
    return found
