"""Softmax over the channels of images: what detectors take the mean place of an edge from."""

from __future__ import annotations

import onnx

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.operators.operation import Operation, Refusal, only_output, row_or_image_of, shape_of

ONE_AXIS = 13  # opset: before, Softmax went over its axis and all behind it


def softmax(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Of images, and of rows (n, c, l). Over the last axis, as in attention, ONNX Runtime's is the better one."""
    row_or_image_of(graph, node.input[0])
    shape = shape_of(graph, only_output(node))
    axis = attributes(node).get("axis", -1) % len(shape)
    if axis != 1 or graph.opset < ONE_AXIS:
        raise Refusal(
            f"a softmax over axis {axis}{'' if axis != 1 else ' and those behind it'}; kerf's is over channels"
        )
    return Operation("softmax", (node.input[0],), (shape,))
