"""float16 networks computed in float32, as CPUs do.

Given: a graph of ONNX's own operators with tensors of float16.
Result: the same in float32; inputs and outputs keep their type, with a Cast behind or in front of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, subgraphs
from kerf.deploy.frontend.passes.drop_identities import rename

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def widen_half(graph: Graph) -> bool:
    """In place; whether there was anything. A graph with an operator of another domain stays as it is: what types it
    takes is not known.
    """
    nodes = list(_all(graph.nodes))
    halves = any(kind == HALF for kind in graph.types.values()) or any(
        _names_half(a) for n in nodes for a in n.attribute
    )
    if not halves or any(node.domain not in STANDARD for node in nodes) or _in_containers(graph):
        return False
    for name, array in list(graph.constants.items()):
        if array.dtype == np.float16 and name not in {o.name for o in graph.outputs}:
            graph.note(name, array.astype(np.float32))
    for node in nodes:
        for attribute in node.attribute:
            _widen(attribute)
        for inner in subgraphs(node):
            _widen_values(inner)
    inputs = [v.name for v in graph.inputs if v.type.tensor_type.elem_type == HALF]
    outputs = [v.name for v in graph.outputs if graph.types.get(v.name) == HALF and v.name not in graph.constants]
    ends = {name: f"{name}.float32" for name in dict.fromkeys((*inputs, *outputs))}
    for node in graph.nodes:
        rename(node, ends)
    first = [helper.make_node("Cast", [name], [ends[name]], f"{name}.widen", to=FLOAT) for name in inputs]
    given = {v.name for v in graph.inputs}
    last = [
        helper.make_node("Cast", [ends[name]], [name], f"{name}.narrow", to=HALF)
        for name in outputs
        if name not in given
    ]
    graph.set_nodes([*first, *graph.nodes, *last])
    graph.infer()
    return True


def _all(nodes) -> Iterator[onnx.NodeProto]:
    """Those of branches and loop bodies too."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from _all(inner.node)


def _names_half(attribute: onnx.AttributeProto) -> bool:
    return attribute.t.data_type == HALF or (attribute.name in ("to", "dtype") and attribute.i == HALF)


def _in_containers(graph: Graph) -> bool:
    """Whether an input or output is a sequence or the like, perhaps of float16."""
    return any(v.type.WhichOneof("value") not in ("tensor_type", None) for v in (*graph.inputs, *graph.outputs))


def _widen(attribute: onnx.AttributeProto) -> None:
    if attribute.name in ("to", "dtype") and attribute.i == HALF:
        attribute.i = FLOAT
    if attribute.t.data_type == HALF:
        _widen_tensor(attribute.t)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _widen_values(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            _widen_tensor(tensor)
