"""DependencyGraph: which channels of which parameters move together.

Every tensor of the network is read as a sequence of channels. A group is a run of channels that appears whole and in
one order wherever it appears: in every parameter and every activation. One permutation of a group, applied at all its
places, therefore leaves the network's function as it was. Channels that no such run joins are groups of one.

Differs from Torch-Pruning's DepGraph (Fang et al., CVPR 2023, arXiv 2301.12900), which groups whole axes: runs of
channels make concatenation, chunks and zero-padded shortcuts cases of one rule.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kerf.compress.network.channel_sets import ChannelSet, channel_sets
from kerf.compress.network.labels import FROZEN, Call, Channels, Parameter, UnsupportedOperator, spread
from kerf.compress.network.operators import LAYERS, READS_PARAMETERS, RULES
from kerf.compress.network.watching import exported, first_layers, twice, unread
from kerf.errors import BadInput

__all__ = ["ChannelSet", "DependencyGraph", "Group", "Member", "UnsupportedOperator"]

Path = str


@dataclass(frozen=True)
class Member:
    """Entries offset … offset + width · repeat - 1 on one axis of one parameter or buffer."""

    path: Path  # "layer1.0.conv1.weight"
    axis: int  # 0 holds the channels that go out, 1 those that come in
    offset: int = 0  # start on that axis (concatenation)
    repeat: int = 1  # consecutive entries per channel (H·W after a flatten)
    produces: bool = False  # rows are the filters that make the channels; a batch norm only follows them


@dataclass(frozen=True)
class Group:
    """Channels that are kept, removed or moved together."""

    name: str  # of the layer that makes them first, with their range if it makes others too
    width: int
    members: tuple[Member, ...]
    fixed: bool = False  # order is visible from outside (network input or output) or in a way no Member can express


@dataclass(frozen=True)
class DependencyGraph:
    groups: tuple[Group, ...]
    stems: tuple[Path, ...]  # weights that read the network input
    sets: tuple[ChannelSet, ...] = ()  # what may be cut, in the model's order
    norms: Mapping[Path, Path] = field(default_factory=dict)  # weight -> the batch norm module that alone reads it
    reused: frozenset[Path] = frozenset()  # weights that are applied more than once

    note: str = ""  # a line on the layers whose channels stay, since operators have no rule; "" if there are none

    @classmethod
    def trace(cls, model: nn.Module, example: Any, strict: bool = False) -> "DependencyGraph":
        """Reads the groups off the model's ATen graph in evaluation mode; the model is left as it was.

        ``example`` is an input (B, C, H, W), a tuple of inputs, or a dict of them by name. Parameters that training
        alone reads, as those of auxiliary classifiers, are read off the graph in training mode. Channels that reach an
        operator without a rule are frozen, and ``note`` says so; where ``strict``, UnsupportedOperator names the
        operator and its module. Raises BadInput for a model that torch.export cannot read.
        """
        channels = Channels(strict=strict)
        program = exported(model, example)
        paths = _canonical_paths(model)
        _follow(program, paths, channels)
        notes = []
        if left := unread(program, paths):
            try:
                _follow_training(exported(model, twice(example), training=True), paths, channels)
            except BadInput as error:
                notes.append(f"{len(left)} parameters are read in training alone, as {left[0]}, and {error}")
        for (path, _), labels in (channels.axes | channels.columns).items():
            if path in channels.stored:
                channels.hold(labels)
        once = {path for path, times in channels.calls.items() if times == 1}
        norms = {weight: path.rpartition(".")[0] for weight, path in channels.norms.items() if {weight, path} <= once}
        reused = frozenset(channels.calls) - once
        sets = channel_sets(model, channels)
        notes = [*told_frozen(channels), *notes]
        return cls(groups_of(channels), tuple(dict.fromkeys(channels.stems)), sets, norms, reused, "; ".join(notes))

    @classmethod
    def untraced(cls, model: nn.Module, example: Any) -> "DependencyGraph":
        """Of a network that torch.export cannot read: which layers read its input is all that is known."""
        return cls((), first_layers(model, example))

    def frozen(self, names: Collection[str], why: str) -> "DependencyGraph":
        """The graph in which these sets may not be cut; `why` joins the note."""
        sets = tuple(replace(s, fixed=True) if s.name in names else s for s in self.sets)
        return replace(self, sets=sets, note="; ".join(filter(None, [self.note, why])))

    def narrowed(self, keep: Mapping[str, Tensor]) -> "DependencyGraph":
        """The graph of the network that is left when of some sets only the channels in `keep`, bool (width,), are.

        It has no groups: which channels may still change places, only a new trace can tell.
        """
        left = {id(s): keep[s.name] for s in self.sets if s.name in keep}
        gone: dict[tuple[Path, int], Tensor] = {}  # entries of an axis that leave
        for s in self.sets:
            for place, owner in s.places.items():
                if id(s) in left:
                    gone[place] = gone.get(place, torch.zeros(len(owner), dtype=torch.bool)) | s.entries(
                        place, ~left[id(s)]
                    )
        sets = tuple(s.narrowed(left.get(id(s)), gone) for s in self.sets)
        return replace(self, groups=(), sets=sets)


def _follow_training(program: torch.export.ExportedProgram, canonical: dict[Path, Path], channels: Channels) -> None:
    """What training adds: most layers are read a second time, which is no second use."""
    calls, pads = channels.calls, channels.pads
    channels.calls, channels.pads = Counter(), {}
    _follow(program, canonical, channels)
    channels.calls = calls | channels.calls
    for path, both in channels.pads.items():
        for before, now in zip(pads.get(path, both), both):
            if len(before) == len(now):
                channels.join(before, now)
            else:
                channels.counted.update([*before.tolist(), *now.tolist()])
    channels.pads = channels.pads | pads


def told_frozen(channels: Channels) -> list[str]:
    """A line on what was frozen, if anything was."""
    held = {channels.find(label) for label in channels.held}
    makers = [
        path.removesuffix(".weight")
        for (path, axis), labels in channels.axes.items()
        if (axis == 0 and path in channels.producers) or (axis == 1 and path in channels.transposed)
        if not held.isdisjoint(map(channels.find, labels.tolist()))
    ]
    if not makers:
        return []
    refused = [f"{operator} ({some(list(dict.fromkeys(where)), 2)})" for operator, where in channels.refusals.items()]
    one = len(makers) == 1
    return [
        f"no rule follows channels through {some(refused or ['constants'])}: {len(makers)} layer{'' if one else 's'} "
        f"keep{'s' if one else ''} all channels, in place: {some(makers)}"
    ]


def some(names: list[str], most: int = 8) -> str:
    """Names for a line: the first, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _canonical_paths(model: nn.Module) -> dict[Path, Path]:
    """A tensor with two names (tied weights) is one parameter: its first name."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, Path] = {}
    return {path: first.setdefault(id(tensor), path) for path, tensor in named}


def _follow(program: torch.export.ExportedProgram, canonical: dict[Path, Path], channels: Channels) -> None:
    """Walks the graph in order, labelling every activation, and tells `channels` what it learns."""
    stored = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    values: dict[torch.fx.Node, Any] = {}  # labels, a Parameter, or a list of such
    for node in program.graph.nodes:
        result = node.meta.get("val")
        if node.op == "output":
            for outcome in torch.fx.node.map_arg(node.args[0], values.__getitem__):
                if isinstance(outcome, Tensor):
                    channels.fix(outcome)
                elif isinstance(outcome, Parameter):
                    channels.stored.add(outcome.path)
        elif node.op != "placeholder":
            values[node] = _apply_rule(node, values, channels)
        elif node.name in stored:
            path = stored[node.name]
            values[node] = Parameter(canonical.get(path, path), result.shape)
        elif node.name in constants or not isinstance(result, Tensor):
            values[node] = channels.frozen(result.shape) if isinstance(result, Tensor) else result
        else:
            values[node] = _given(result.shape, channels)
        if isinstance(value := values.get(node), Tensor):
            channels.sequences.append(_in_order(value))


def _given(shape: torch.Size, channels: Channels) -> Tensor:
    """Labels of an input of the network, whose channels are along axis 1."""
    if len(shape) < 2:
        return channels.frozen(shape)
    labels = channels.fresh(shape[1])
    channels.inputs.update(labels.tolist())
    channels.fix(labels)
    return spread(labels, 1, shape)


def _apply_rule(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any], channels: Channels) -> Any:
    rule, result = RULES.get(node.target), node.meta.get("val")
    read: list[Parameter | Tensor] = []  # by this call

    def argument(source: torch.fx.Node) -> Any:
        value = values[source]
        if isinstance(value, Parameter) and rule is not None and rule not in READS_PARAMETERS:
            vector = channels.vector(value)
            if vector is None:
                channels.stored.add(value.path)
                vector = channels.frozen(value.shape)
            value = vector
        read.extend(v for v in (value if isinstance(value, list | tuple) else [value]))
        return value

    args = list(torch.fx.node.map_arg(node.args, argument))
    if rule in LAYERS and rule is not RULES[torch.ops.aten.embedding.default] and isinstance(args[0], Parameter):
        channels.stored.add(args[0].path)
        args[0] = channels.frozen(args[0].shape)
    call = Call(node, args, result.shape if isinstance(result, Tensor) else None)
    try:
        if rule is None:
            raise call.refuse("there is no rule for how channels pass through this operator")
        return rule(call, channels)
    except UnsupportedOperator:
        if channels.strict:
            raise
        return _freeze(call, rule, read, channels)


def _freeze(call: Call, rule: Any, read: list[Any], channels: Channels) -> Any:
    """What comes of a call through which channels are not followed: those that reach it keep place and number."""
    labels = [value for value in read if isinstance(value, Tensor)]
    loose = any(not channels.fixed.issuperset(some.unique().tolist()) for some in labels)
    stored = {value.path for value in read if isinstance(value, Parameter)}
    if loose or stored - channels.stored:
        channels.refusals.setdefault(str(call.node.target), []).append(call.module or "the network itself")
    channels.hold(*labels)
    if rule in LAYERS and call.args and isinstance(call.args[0], Tensor) and not call.stem:
        stem = not channels.inputs.isdisjoint(call.args[0].unique().tolist())
        again = Call(call.node, [channels.frozen(call.args[0].shape), *call.args[1:]], call.result, stem)
        try:  # the layer makes channels of its own
            return rule(again, channels)
        except UnsupportedOperator:
            pass
    channels.stored |= stored
    result = call.node.meta.get("val")
    if isinstance(result, list | tuple):
        return [channels.frozen(part.shape) if isinstance(part, Tensor) else part for part in result]
    return channels.frozen(result.shape) if isinstance(result, Tensor) else result


def _in_order(labels: Tensor) -> Tensor:
    """The labels in memory order, without the axes that only repeat them."""
    for axis, stride in enumerate(labels.stride()):
        if stride == 0:
            labels = labels.narrow(axis, 0, 1)
    return labels.flatten()


@dataclass(frozen=True)
class _Run:
    """One channel's consecutive entries in a tensor."""

    channel: int
    start: int
    labels: tuple[int, ...]


def _runs(labels: Tensor, channels: Channels) -> list[_Run]:
    runs, start = [], 0
    for channel, equal in groupby(labels.tolist(), channels.find):
        entries = tuple(equal)
        runs.append(_Run(channel, start, entries))
        start += len(entries)
    return runs


def _following(everywhere: list[list[_Run]], channels: Channels) -> dict[int, int]:
    """x -> y where y continues x's group: everywhere x is followed by y, and y preceded by x, part by part the same.

    An exchange of x and y sends each label of x to its `image`, a label of y: a run of n entries is not enough, since
    two tensors may hold different parts of x and y. Every tensor has to agree on one map.
    """
    after: dict[int, set[int | None]] = defaultdict(set)  # of channels
    before: dict[int, set[int | None]] = defaultdict(set)
    image: dict[int, set[int]] = defaultdict(set)  # of labels
    origin: dict[int, set[int]] = defaultdict(set)
    for runs in everywhere:
        for left, right in pairwise([None, *runs, None]):
            joined = left is not None and right is not None and len(left.labels) == len(right.labels)
            joined = joined and FROZEN not in (left and left.channel, right and right.channel)
            if left:
                after[left.channel].add(right.channel if right and joined else None)
            if right:
                before[right.channel].add(left.channel if left and joined else None)
            if left and right and joined:
                for x, y in zip(left.labels, right.labels, strict=True):
                    image[x].add(y)
                    origin[y].add(x)

    only = {x: _only(after[x]) for x in after}
    following = {x: y for x, y in only.items() if y is not None and _only(before[y]) == x}
    for x, ys in image.items():
        if len(ys) > 1 or any(len(origin[y]) > 1 for y in ys):
            following.pop(channels.find(x), None)
    return following


def _only(things: set[int | None]) -> int | None:
    return next(iter(things)) if len(things) == 1 else None


def groups_of(channels: Channels) -> tuple[Group, ...]:
    """From `axes` and `sequences`, all that is known of where channels are."""
    fixed = {channels.find(label) for label in channels.fixed | channels.ordered}
    axes = {place: _runs(labels, channels) for place, labels in channels.axes.items()}
    distinct = {tuple(labels.tolist()): labels for labels in channels.sequences}
    following = _following([*axes.values(), *(_runs(s, channels) for s in distinct.values())], channels)

    begins = dict.fromkeys(run.channel for runs in axes.values() for run in runs)
    for channel in following.values():
        begins.pop(channel, None)
    places = defaultdict(list)
    for (path, axis), runs in axes.items():
        for run in runs:
            if run.channel in begins:
                produces = axis == 0 and path in channels.producers
                places[run.channel].append(Member(path, axis, run.start, len(run.labels), produces))
    groups = []
    for channel in begins:
        members, whole = tuple(places[channel]), [channel]
        while whole[-1] in following:
            whole.append(following[whole[-1]])
        groups.append(Group(_name(members, len(whole), channels), len(whole), members, not fixed.isdisjoint(whole)))
    return tuple(groups)


def _name(members: tuple[Member, ...], width: int, channels: Channels) -> str:
    maker = next((m for m in members if m.produces), members[0])
    layer = maker.path.rpartition(".")[0] or maker.path
    if maker.axis == 1:
        layer = f"input of {layer}"
    whole = width * maker.repeat == len(channels.axes[maker.path, maker.axis])
    return layer if whole else f"{layer}[{maker.offset}:{maker.offset + width * maker.repeat}]"
