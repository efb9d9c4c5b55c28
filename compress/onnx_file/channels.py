"""What is known of the channels of an .onnx graph while they are followed through its operators.

Each tensor that carries channels has labels along one axis. A layer makes new ones; its weight, its bias and what reads
it are bound to them; a sum joins those that meet. Where channels cannot be followed they keep their places.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from torch import Tensor

from kerf.compress.network.labels import Channels
from kerf.deploy.frontend.onnx_graph import Graph, called, reads


@dataclass(frozen=True)
class Line:
    """The channels of a tensor: ``labels`` (n,) along ``axis``."""

    axis: int
    labels: Tensor


class Unfollowed(Exception):
    """A node through which channels are not followed."""


class Followed:
    """What rules are given: ``lines`` of tensors; those that are not there hold nothing that moves."""

    def __init__(self, graph: Graph):
        self.graph, self.channels = graph, Channels()
        self.lines: dict[str, Line] = {}
        self.bound: Counter[tuple[str, int]] = Counter()  # constant, axis -> how often it is read as these channels
        self.makers: set[tuple[str, int]] = set()  # weight, the axis of its filters

    def constant(self, name: str) -> bool:
        return name in self.graph.constants

    def sizes(self, name: str) -> tuple[int | str, ...]:
        """Raises Unfollowed where not even the number of axes is known."""
        found = self.graph.shapes.get(name)
        if found is None:
            raise Unfollowed
        return found

    def bind(self, constant: str, axis: int, labels: Tensor) -> Tensor:
        """These channels lie along an axis of a constant. Raises Unfollowed where they are not as many."""
        if not self.constant(constant) or self.graph.constants[constant].shape[axis] != len(labels):
            raise Unfollowed
        self.bound[constant, axis] += 1
        return self.channels.bind(constant, axis, labels)

    def made(self, weight: str, axis: int) -> Tensor:
        """The channels that a layer makes, whose filters lie along that axis of its weight."""
        self.makers.add((weight, axis))
        self.channels.producers.add(weight)
        return self.bind(weight, axis, self.channels.fresh(self.graph.constants[weight].shape[axis]))

    def join(self, lines: Iterable[Tensor]) -> Tensor:
        """Channels that meet, as many in all; the first. Raises Unfollowed where they are not as many."""
        first, *others = lines
        for labels in others:
            if len(labels) != len(first):
                raise Unfollowed
            self.channels.join(first, labels)
        return first

    def still(self, count: int) -> Tensor:
        """Labels for entries that stay where they are."""
        labels = self.channels.fresh(count)
        self.channels.fix(labels)
        return labels

    def place(self, name: str, axis: int, labels: Tensor) -> None:
        self.lines[name] = Line(axis, labels)
        self.channels.sequences.append(labels)

    def hold(self, node: onnx.NodeProto) -> None:
        """The channels that reach the node stay where they are."""
        lines = [self.lines[name].labels for name in reads(node) if name in self.lines]
        if any(not self.channels.fixed.issuperset(labels.tolist()) for labels in lines):
            self.channels.refusals.setdefault(node.op_type, []).append(called(node))
        self.channels.hold(*lines)
