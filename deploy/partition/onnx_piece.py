"""A piece as an ONNX model of its own: what ONNX Runtime or OpenVINO is given to run."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from kerf.deploy.frontend.network import Piece
from kerf.deploy.frontend.onnx_graph import OWN, Graph, reads


def model(graph: Graph, piece: Piece) -> onnx.ModelProto:
    """The piece's own nodes, kerf's layers as the ONNX nodes that they were made of, constants included."""
    made_of = (original for node in piece.nodes for original in graph.originals(node))
    nodes = list({node.output[0]: node for node in made_of}.values())  # layers may share what makes their weights
    read = set().union(*(reads(node) for node in nodes)) | set(piece.outputs)
    constants = [graph.tensor(name) for name in graph.constants if name in read]
    inputs = [graph.value(t) for t in piece.inputs]
    outputs = [_described(graph, t) for t in piece.outputs]
    made = helper.make_graph(nodes, "kerf", inputs, outputs, constants)
    opsets = [o for o in graph.original.opset_import if o.domain != OWN]
    functions = graph.original.functions
    return helper.make_model(made, opset_imports=opsets, ir_version=graph.original.ir_version, functions=functions)


def _described(graph: Graph, tensor: str) -> onnx.ValueInfoProto:
    """Without sizes where they are not known: the engine finds them when it runs."""
    value = graph.value(tensor)
    return value if value.type.WhichOneof("value") else helper.make_empty_tensor_value_info(tensor)


def untyped(graph: Graph, pieces: Iterable[Piece]) -> str | None:
    """A tensor that pieces exchange and that is no tensor of numbers whose type is known; None if there is none.

    A sequence, say, cannot be handed from one piece to another.
    """
    inputs = {i.name for i in graph.inputs}
    for piece in pieces:
        for name in {*piece.inputs} - inputs:
            kind = graph.value(name).type
            unknown = kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.elem_type
            if unknown or kind.tensor_type.elem_type == onnx.TensorProto.STRING:
                return name
    return None
