"""Pooling: of windows, and of whole images."""

from __future__ import annotations

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.operators.operation import Operation, Refusal, constant, image_of, only_output, shape_of
from kerf.deploy.frontend.windows import window
from kerf.errors import BadInput
from kerf.kernels.problem import Problem


def max_pool(graph: Graph, node: onnx.NodeProto) -> Operation:
    return _windows(graph, node, "max_pool")


def _windows(graph: Graph, node: onnx.NodeProto, function: str) -> Operation:
    n, c, h, w = image_of(graph, node.input[0])
    shape = image_of(graph, only_output(node))
    kernel, stride, dilation, padding = window(attributes(node), tuple(attributes(node)["kernel_shape"]), (h, w))
    # ceil_mode: the last windows reach over the padding, as if there were more of it
    missing = [
        max((out - 1) * s + d * (k - 1) + 1 - size - before - after, 0)
        for out, s, d, k, size, before, after in zip(
            shape[2:], stride, dilation, kernel, (h, w), padding[:2], padding[2:]
        )
    ]
    padding = (*padding[:2], padding[2] + missing[0], padding[3] + missing[1])
    try:
        p = Problem(n, c, h, w, c, kernel, stride, padding, dilation, groups=c)
    except BadInput as error:
        raise Refusal(str(error)) from error
    if p.out_shape != shape:
        raise Refusal(f"its output is {shape}, where its window gives {p.out_shape}")
    return Operation(function, (node.input[0],), (shape,), {"problem": p, "missing": tuple(missing)})


def global_mean(graph: Graph, node: onnx.NodeProto) -> Operation:
    image_of(graph, node.input[0])
    return Operation("mean", (node.input[0],), (shape_of(graph, only_output(node)),))


def mean(graph: Graph, node: onnx.NodeProto) -> Operation:
    """ReduceMean over height and width."""
    image_of(graph, node.input[0])
    axes = attributes(node).get("axes", constant(graph, node, 1))
    found = sorted(int(axis) % 4 for axis in np.ravel(axes)) if axes is not None else []
    if found != [2, 3]:
        raise Refusal(f"a mean over axes {found or 'of all'}; kerf's is over height and width")
    return global_mean(graph, node)
