"""Functions of one tensor of bytes that give bytes again, as tables of 256.

Given: operations of pixels between a tensor of bytes and another: DequantizeLinear, what computes on floats, and
QuantizeLinear, as quantisers put them around every activation, x sigmoid(x) with the sigmoid rounded in between
included.
Result: one lookup in the table of all 256 values, each what ONNX's nodes give.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.operators.operation import Operation, Refusal, type_of
from kerf.kernels.pointwise import table
from kerf.kernels.pointwise.program import FLOAT, IMAGE, Pointwise

Values = dict[str, np.ndarray]  # tensor of bytes -> what another one is, as it is stored, for each value of it (256,)


def lookups(graph: Graph, operations: Mapping[str, Operation]) -> dict[str, Operation]:
    """Of those ``operations`` that give bytes, by the output of the node in whose place each stands."""
    known: dict[str, Values] = {}
    found = {}
    for node in graph.nodes:
        output = node.output[0]
        operation = operations.get(output)
        program = _program(operation) if operation is not None else None
        if operation is None or program is None:
            continue
        values = [known.get(name) or _own(graph, name) for name in operation.tensors]
        common = [source for source in values[0] if all(source in other for other in values)] if values else []
        known[output] = {
            source: table.evaluate(program, [by[source] for by in values])
            for source in common
            if graph.fixed_shape(source) == operation.shape
        }
        if program.result != FLOAT:
            if known[output] and program.steps:
                source, entries = next(iter(known[output].items()))  # the first is the furthest back
                found[output] = Operation("lookup", (source, entries), (operation.shape,))
            known[output] |= _own(graph, output)
    return found


def _program(operation: Operation) -> Pointwise | None:
    """Of an operation whose operands have a number for each pixel; None for any other."""
    f = operation.arguments.get("pointwise")
    if f is None or f.parts or set(f.operands) != {IMAGE} or len(operation.tensors) != len(operation.inputs):
        return None
    return f


def _own(graph: Graph, tensor: str) -> Values:
    """Of a tensor of bytes for itself."""
    try:
        kind = type_of(graph, tensor)
    except Refusal:
        return {}
    return {tensor: table.every(kind.numpy)} if kind.quantised else {}
