"""A network with Q/DQ as the f32 network that it approximates: what a dense engine without integers would be given.

Given: QuantizeLinear and DequantizeLinear anywhere, weights and biases as integers with scales.
Result: constants as floats, nothing rounded but inputs and outputs of the network that are integers. Where the zero
point of unsigned integers is 0, QuantizeLinear also clips negative numbers, which quantisers use in place of Relu and
Clip: there a Clip stays, unless nothing negative can come.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.passes.linear import DEQUANTISE, QUANTISE, Steps, steps
from kerf.deploy.frontend.passes.unsigned import KINDS, moved
from kerf.errors import Unsupported

UNSIGNED = ("uint8", "uint16")
POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
KEEPS_SIGN = (
    *("Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Transpose", "Flatten"),
    *("Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "DequantizeLinear"),
)


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy; inputs and outputs keep their names and types. Raises Unsupported for scales that the network computes,
    or that stand for blocks of a weight.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    others = {name: array for name, array in arrays.items() if array.dtype.kind == "f" and (array >= 0).all()}
    source = Graph(model)
    positive, nodes, left = set(others), [], _left(source)
    for node in model.graph.node:
        kept = node
        if node.op_type == DEQUANTISE and node.input[0] in arrays:
            values = _steps(source, node).dequantise(arrays[node.input[0]])
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            if (values >= 0).all():
                positive.add(node.output[0])
            continue
        if node.op_type in (QUANTISE, DEQUANTISE) and left.isdisjoint((node.input[0], node.output[0])):
            kept = _without_rounding(source, node, arrays, positive, graph)
        if kept.op_type in POSITIVE or (kept.op_type in KEEPS_SIGN and set(filter(None, kept.input[:2])) <= positive):
            positive.update(kept.output)
        if kept.op_type == "Clip":
            bounds = attributes(kept).get("min", arrays.get(kept.input[1]) if len(kept.input) > 1 else None)
            if bounds is not None and np.all(np.asarray(bounds) >= 0):
                positive.update(kept.output)
        nodes.append(kept)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    _drop_unread(graph)
    return made


def _left(graph: Graph) -> set[str]:
    """Tensors of integers that others than Q/DQ nodes give or take, as the network's inputs and outputs, and those that
    are moved together with them.
    """
    ends = {o.name for o in graph.outputs}
    found = {
        t
        for t, kind in graph.types.items()
        if kind in KINDS and t not in graph.constants and (t in ends or not _between(graph, t))
    }
    while True:
        together = [{*given, *node.output} for node in graph.nodes if (given := moved(node))]
        more = set().union(*(each for each in together if not found.isdisjoint(each))) - found
        if not more:
            return found
        found |= more


def _between(graph: Graph, tensor: str) -> bool:
    maker = graph.producer(tensor)
    makes = maker is not None and (maker.op_type == QUANTISE or bool(moved(maker)))
    return makes and all(r.op_type == DEQUANTISE or moved(r) for r in graph.consumers(tensor))


def _steps(graph: Graph, node: onnx.NodeProto) -> Steps:
    found = steps(graph, node)
    if found is None or found.block:
        raise Unsupported(
            f"{node.name or node.output[0]}: its scale is computed, or of blocks; it has no f32 form here"
        )
    return found


def _without_rounding(
    source: Graph, node: onnx.NodeProto, arrays: dict[str, np.ndarray], positive: set[str], graph: onnx.GraphProto
) -> onnx.NodeProto:
    x, y = node.input[0], node.output[0]
    if node.op_type == QUANTISE and x not in positive:
        found = _steps(source, node)
        if found.axis is None and found.dtype in UNSIGNED and not found.zero.any():
            ends = {f"{y}.least": 0, f"{y}.most": np.iinfo(found.dtype).max * found.scale.item()}
            graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in ends.items())
            arrays |= {name: np.array(value, np.float32) for name, value in ends.items()}
            return helper.make_node("Clip", [x, *ends], [y], node.name)
    return helper.make_node("Identity", [x], [y], node.name)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Constants that were scales, zero points and integers."""
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    copies = onnx.GraphProto()
    copies.initializer.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(copies.initializer)
