"""Operations of one pixel each that follow one another, as one pass over memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.operators import elementwise
from kerf.deploy.frontend.operators.lookups import lookups
from kerf.deploy.frontend.operators.operation import Operation, Refusal, shape_of
from kerf.deploy.frontend.operators.table import operation
from kerf.deploy.frontend.passes.activations import spelled
from kerf.kernels.pointwise.program import FLOAT, IMAGE, Pointwise, Step


@dataclass
class Operations:
    """``by_output``: an operation, by the first output of the node in whose place it stands. ``absorbed``: outputs of
    nodes that these operations compute on the way.
    """

    by_output: dict[str, Operation] = field(default_factory=dict)
    absorbed: set[str] = field(default_factory=set)


def operations(graph: Graph, functions: Collection[str]) -> Operations:
    """Of every node that one of these ``functions`` can compute."""
    found = Operations()
    if "pointwise" in functions:
        _spelled_activations(graph, found)
    for node in graph.nodes:
        output = node.output[0]
        if output in found.by_output or output in found.absorbed:
            continue
        try:
            asked = operation(graph, node)
        except Refusal:
            continue
        if asked.function in functions:
            found.by_output[output] = asked
    if "lookup" in functions:
        _look_up(graph, found)
    if "pointwise" in functions:
        _merge(graph, found)
    return found


def _spelled_activations(graph: Graph, found: Operations) -> None:
    """Activations of several nodes that follow no layer."""
    for tensor, activation, nodes in spelled(graph, found.absorbed):
        try:
            shape = shape_of(graph, nodes[-1].output[0])
        except Refusal:
            continue
        *inner, last = (n.output[0] for n in nodes)
        found.by_output[last] = elementwise.operation(shape, [tensor], [IMAGE], [Step(activation, (0,))])
        found.absorbed.update(inner)


def _look_up(graph: Graph, found: Operations) -> None:
    """Tables in place of what makes bytes of bytes, and of what only they have read."""
    tables = lookups(graph, found.by_output)
    found.by_output |= tables
    for node in reversed(graph.nodes) if tables else ():
        output = node.output[0]
        operation = found.by_output.get(output)
        if operation is not None and operation.function in ("lookup", "pointwise") and not _read(graph, found, output):
            del found.by_output[output]
            found.absorbed.add(output)


def _merge(graph: Graph, found: Operations) -> None:
    """Each operation into the next one, where that alone reads it."""
    for node in graph.nodes:
        output = node.output[0]
        while (tensor := _mergeable(graph, found, output)) is not None:
            first, second = found.by_output.pop(tensor), found.by_output[output]
            at = next(i for i, x in enumerate(second.inputs) if isinstance(x, str) and x == tensor)
            found.by_output[output] = joined(first, second, at)
            found.absorbed.add(tensor)


def _mergeable(graph: Graph, found: Operations, output: str) -> str | None:
    """A tensor that only the operation of ``output`` reads, and once, and that another such operation makes."""
    second = found.by_output.get(output)
    if second is None or second.function != "pointwise" or second.arguments["pointwise"].parts:
        return None
    for tensor in second.tensors:
        first = found.by_output.get(tensor)
        if first is None or first.function != "pointwise" or first.shape != second.shape:
            continue
        if second.tensors.count(tensor) == 1 and not _read(graph, found, tensor, besides=output):
            return tensor
    return None


def _read(graph: Graph, found: Operations, tensor: str, besides: str = "") -> bool:
    """Whether anything reads ``tensor``, but for the operation of the output ``besides``."""
    if tensor in {o.name for o in graph.outputs}:
        return True
    nodes = {n.output[0] for n in graph.consumers(tensor)} - found.absorbed - set(found.by_output)
    return bool(nodes) or any(tensor in op.tensors for name, op in found.by_output.items() if name != besides)


def joined(first: Operation, second: Operation, at: int) -> Operation:
    """``second`` with ``first`` for its input ``at``, which it reads as an image."""
    a, b = first.arguments["pointwise"], second.arguments["pointwise"]
    a = saturated(a)
    kept = [i for i in range(len(b.operands)) if i != at]
    result = len(a.operands) + len(kept) + len(a.steps) - 1 if a.steps else 0
    # where the values of each one stand in both
    ours = {i: i for i in range(len(a.operands))}
    ours |= {len(a.operands) + i: len(a.operands) + len(kept) + i for i in range(len(a.steps))}
    theirs = {i: len(a.operands) + k for k, i in enumerate(kept)} | {at: result}
    begin = len(a.operands) + len(kept) + len(a.steps)
    theirs |= {len(b.operands) + i: begin + i for i in range(len(b.steps))}
    steps = [*_renumbered(a.steps, ours), *_renumbered(b.steps, theirs)]
    operands = (*a.operands, *(b.operands[i] for i in kept))
    inputs = (*first.inputs, *(second.inputs[i] for i in kept))
    stored = (*a.dtypes, *(b.dtypes[i] for i in kept))
    whole = Pointwise(operands, tuple(steps), a.parts, stored if set(stored) != {FLOAT} else (), b.result)
    return Operation("pointwise", inputs, second.shapes, {"pointwise": whole})


def saturated(f: Pointwise) -> Pointwise:
    """With a result of floats: whole numbers within the bounds of what it would be stored as."""
    if f.result == FLOAT:
        return f
    last, bounds = len(f.operands) + len(f.steps) - 1 if f.steps else 0, np.iinfo(f.result)
    first = len(f.operands) + len(f.steps)
    steps = Step("max", (last, float(bounds.min))), Step("min", (first, float(bounds.max)))
    return replace(f, steps=(*f.steps, *steps), result=FLOAT)


def _renumbered(steps: tuple[Step, ...], places: dict[int, int]) -> list[Step]:
    return [Step(s.does, tuple(places[v] if isinstance(v, int) else v for v in s.values)) for s in steps]
