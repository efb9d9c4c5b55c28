"""Nodes that keep every number in its place: another shape, or none of a network that only infers."""

from __future__ import annotations

import onnx

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.operators.operation import Operation, only_output, shape_of


def view(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Flatten, Reshape, Squeeze, Unsqueeze, Identity, Dropout: the result's shape is all there is to know."""
    shape_of(graph, node.input[0], integers=True)
    return Operation("view", (node.input[0],), (shape_of(graph, only_output(node), integers=True),))
