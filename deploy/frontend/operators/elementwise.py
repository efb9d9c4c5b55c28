"""Operators on the pixels of images, each for itself."""

from __future__ import annotations

import onnx

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.operators.operation import Operation, Refusal, image_of, only_output, shape_of


def multiply(graph: Graph, node: onnx.NodeProto) -> Operation:
    """An image times one number per channel: what squeeze-excite ends with."""
    shape = image_of(graph, only_output(node))
    for x, factor in (tuple(node.input), tuple(node.input)[::-1]):
        if shape_of(graph, x) == shape and shape_of(graph, factor) == (*shape[:2], 1, 1) != shape:
            return Operation("scale", (x, factor), (shape,))
    raise Refusal(f"a product of {' and '.join(str(shape_of(graph, x)) for x in node.input)}")
