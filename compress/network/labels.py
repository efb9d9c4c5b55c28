"""Channels as labels: what is known of them, and what a rule for an operator is given.

An activation of shape (B, C, H, W) is followed as a tensor of labels of the same shape, equal over the positions of a
channel. A convolution makes new labels; a sum joins the labels that meet. Joined labels are one channel and move
together: in one tensor a channel is one label for all of H × W, after a flatten it is H·W labels. Labels that differ
only along C are kept as stride-0 views.

Where channels cannot be followed they are frozen: they keep their place and their number, and what is made of them has
the label FROZEN in every entry, of which nothing else is known.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from kerf.errors import Unsupported

FROZEN = 0  # the label of entries that neither move nor leave; it is joined with no other


class UnsupportedOperator(Unsupported):
    """An operator through which channels cannot be followed."""


@dataclass
class Channels:
    """What is known of all channels: which are one, which may not move, and where parameters carry them."""

    parent: list[int] = field(default_factory=lambda: [FROZEN])  # union-find forest over labels; a tree is a channel
    fixed: set[int] = field(default_factory=lambda: {FROZEN})  # may neither move nor leave
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
    transposed: set[str] = field(default_factory=set)  # weights (I, O, …) of transposed convolutions
    held: set[int] = field(default_factory=set)  # labels that are fixed since an operator could not be followed
    stored: set[str] = field(default_factory=set)  # parameters that such an operator reads: no axis of theirs changes
    refusals: dict[str, list[str]] = field(default_factory=dict)  # operator -> modules in which it froze channels
    strict: bool = False  # refuse, instead of freezing

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
            if FROZEN in (x, y):
                self.hold(torch.tensor([x, y]))
                continue
            x, y = self.find(x), self.find(y)
            self.parent[max(x, y)] = min(x, y)

    def fix(self, labels: Tensor) -> None:
        self.fixed.update(labels.flatten().tolist())

    def hold(self, *labels: Tensor) -> None:
        """Freezes what reaches an operator through which channels are not followed."""
        for some in labels:
            found = some.unique().tolist()
            self.held.update(found)
            self.fixed.update(found)

    def frozen(self, shape: torch.Size) -> Tensor:
        """Labels of a result that depends on nothing that may move; a single number is the same for all channels."""
        return self.uniform(shape) if shape.numel() == 1 else torch.tensor(FROZEN).expand(shape)

    def uniform(self, shape: torch.Size) -> Tensor:
        """Labels of a result that is the same for all channels, as an average over them."""
        label = self.fresh(1)
        self.counted.update(label.tolist())
        return label.squeeze(0).expand(shape)

    def tie(self, rows: Tensor) -> None:
        """(parts, n) labels: those in one column leave together, so that the parts stay equally large."""
        if (rows == FROZEN).any():
            self.counted.update(rows.flatten().tolist())
            return
        self.ties += [(rows[0], row) for row in rows[1:]]

    def within(self, labels: Tensor) -> Tensor:
        """Labels of their own for entries that are parts of a channel: which part it is must not be forgotten."""
        parts = self.fresh(labels.numel()).view(labels.shape)
        known = labels != FROZEN
        self.join(parts[known], labels[known])
        return torch.where(known, parts, labels)

    def vector(self, parameter: "Parameter") -> Tensor | None:
        """Labels of a stored tensor that is long along one axis alone, as a scale or a class token; else None."""
        long = [axis for axis, size in enumerate(parameter.shape) if size > 1]
        if not long:
            return self.uniform(parameter.shape)
        if len(long) > 1:
            return None
        known = self.axes.get((parameter.path, long[0]))
        labels = self.fresh(parameter.shape[long[0]]) if known is None else known
        return spread(self.bind(parameter.path, long[0], labels), long[0], parameter.shape)

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
    result: torch.Size | None  # the shape; None when the result is a list of tensors
    stem: bool = False  # whether what was frozen of its arguments came from the network input

    @property
    def shape(self) -> torch.Size:
        if self.result is None:
            raise self.refuse("it gives several tensors where one was expected")
        return self.result

    def arg(self, index: int, default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else default

    def refuse(self, why: str) -> UnsupportedOperator:
        return UnsupportedOperator(f"{self.node.target}{f' in {self.module}' if self.module else ''}: {why}")

    @property
    def module(self) -> str:
        """Path of the module whose forward makes the call; "" for the network itself."""
        modules = list((self.node.meta.get("nn_module_stack") or {}).values())
        return modules[-1][0] if modules else ""


def along(call: Call, channels: Channels, labels: Tensor, axis: int) -> Tensor:
    """(n,) labels along one axis, if they are the same at every position of the others.

    Entries that are frozen get labels of their own, for what reads them has to count them.
    """
    index: list[Any] = [0] * labels.ndim
    index[axis] = slice(None)
    line = labels[tuple(index)]
    if not torch.equal(labels, spread(line, axis, labels.shape)):
        raise call.refuse(f"reads axis {axis} as channels, but an earlier reshape put other things there")
    unknown = line == FROZEN
    if not unknown.any():
        return line
    own = channels.fresh(int(unknown.sum()))
    channels.hold(own)
    if call.stem:
        channels.inputs.update(own.tolist())
    return line.clone().masked_scatter_(unknown, own)


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


def varying(labels: Tensor) -> list[int]:
    """The axes along which labels differ."""
    return [axis for axis, size in enumerate(compact(labels).shape) if size > 1]
