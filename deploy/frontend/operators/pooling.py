"""Pooling: of windows, and of whole images; a tensor (n, c, l) is an image of one row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.operators.operation import (
    Operation,
    Refusal,
    constant,
    only_output,
    row_or_image_of,
    shape_of,
    type_of,
)
from kerf.deploy.frontend.passes.linear import dequantised
from kerf.deploy.frontend.windows import of_one_row, window
from kerf.errors import BadInput
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType

WEIGHTS = TensorType("i8", axis=0)  # what a Problem wants beside integers: pooling has none


def max_pool(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Of bytes, too."""
    return _windows(graph, node, "max_pool")


def average_pool(graph: Graph, node: onnx.NodeProto) -> Operation:
    """``divisors`` (h, w): of each pixel how many numbers its window takes. Of floats; where they are made of bytes, of
    those.
    """
    found, a = _windows(graph, node, "average_pool"), attributes(node)
    p, (rows, columns) = found.arguments["problem"], found.arguments["missing"]
    counted = np.zeros((p.height + p.padding[0] + p.padding[2], p.width + p.padding[1] + p.padding[3]))
    if a.get("count_include_pad", 0):
        counted[: counted.shape[0] - rows, : counted.shape[1] - columns] = 1
    else:
        counted[p.padding[0] : p.padding[0] + p.height, p.padding[1] : p.padding[1] + p.width] = 1
    count = sum(
        counted[dy : dy + p.out_height * p.stride[0] : p.stride[0], dx : dx + p.out_width * p.stride[1] : p.stride[1]][
            : p.out_height, : p.out_width
        ]
        for dy in range(0, p.kernel[0] * p.dilation[0], p.dilation[0])
        for dx in range(0, p.kernel[1] * p.dilation[1], p.dilation[1])
    )
    if not np.all(count):
        raise Refusal("a window with nothing but padding in it")
    tensor, kind = _bytes(graph, node.input[0])
    if kind != F32:
        p = replace(p, x=kind.unit, w=WEIGHTS)
    return replace(found, inputs=(tensor,), arguments={"problem": p, "divisors": count, "type": kind})


def _windows(graph: Graph, node: onnx.NodeProto, function: str) -> Operation:
    integers = function == "max_pool"
    n, c, h, w = row_or_image_of(graph, node.input[0], integers)
    shape, kind = row_or_image_of(graph, only_output(node), integers), type_of(graph, node.input[0])
    a, own = attributes(node), shape_of(graph, node.output[0], integers)
    a = a if len(own) == 4 else of_one_row(a)
    kernel, stride, dilation, padding = window(a, tuple(a["kernel_shape"]), (h, w))
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
        p = replace(p, x=kind, w=WEIGHTS, y=kind) if kind.quantised else p
    except BadInput as error:
        raise Refusal(str(error)) from error
    if p.out_shape != shape:
        raise Refusal(f"its output is {shape}, where its window gives {p.out_shape}")
    return Operation(function, (node.input[0],), (own,), {"problem": p, "missing": tuple(missing)})


def global_mean(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Of floats; where they are made of bytes, of those."""
    row_or_image_of(graph, node.input[0])
    tensor, kind = _bytes(graph, node.input[0])
    return Operation("mean", (tensor,), (shape_of(graph, only_output(node)),), {"type": kind})


def _bytes(graph: Graph, tensor: str) -> tuple[str, TensorType]:
    """What a tensor of floats is made of, where that is bytes of one scale; else itself."""
    found = dequantised(graph, tensor)
    kind = found[1].tensor_type if found is not None else None
    return (found[0].input[0], kind) if found is not None and kind is not None else (tensor, F32)


def mean(graph: Graph, node: onnx.NodeProto) -> Operation:
    """ReduceMean over height and width, or over all of a row."""
    row_or_image_of(graph, node.input[0])
    dims = len(shape_of(graph, node.input[0]))
    axes = attributes(node).get("axes", constant(graph, node, 1))
    found = sorted(int(axis) % dims for axis in np.ravel(axes)) if axes is not None else []
    if found != [*range(2, dims)]:
        raise Refusal(f"a mean over axes {found or 'of all'}; kerf's is over height and width")
    return global_mean(graph, node)
