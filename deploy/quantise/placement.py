"""Where numbers are rounded: around layers and what stands between them, not within what is one function.

Left in f32, then, are the nodes of an activation that is spelled by several (x sigmoid(x), gelu by erf), whose steps
quantisers round one by one; the sum of a MatMul with its bias; and what a Gemm or a MatMul gives, which whoever reads
it rounds, and nobody where it is the network's answer. An activation reads bytes, so that it is a table to those who
compute on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.activations import spelled
from kerf.deploy.frontend.passes.linear import DEQUANTISE, QUANTISE

UNROUNDED = ("Gemm", "MatMul")  # results that are not rounded for their own sake
Range = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """``left``: names of nodes that stay in f32. ``read``: tensors that activations of several nodes are of."""

    left: tuple[str, ...]
    read: tuple[str, ...]


def placement(graph: Graph) -> Placement:
    """Nodes have names (named)."""
    left: list[str] = []
    read, taken = [], set[str]()
    for tensor, _, nodes in spelled(graph, taken):
        taken.update(n.output[0] for n in nodes)
        left += [n.name for n in nodes]
        read.append(tensor)
    left += [node.name for node in graph.nodes if _adds_a_bias(graph, node)]
    return Placement(tuple(left), tuple(read))


def named(graph: Graph) -> None:
    """Gives a name of its own to every node that has none, or another one's."""
    taken: set[str] = set()
    for node in graph.nodes:
        base = node.name or node.output[0] or node.op_type
        node.name = next(name for i in range(10**9) if (name := base if i == 0 else f"{base}_{i}") not in taken)
        taken.add(node.name)


def rounded(model: onnx.ModelProto, tensors: Sequence[str], ranges: Mapping[str, Range]) -> None:
    """In place: Q and DQ to uint8 behind those tensors that no Q/DQ stands behind yet."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for name in tensors:
        maker = makers.get(name)
        readers = [node for node in model.graph.node if name in node.input]
        if maker is None or maker.op_type == DEQUANTISE or any(node.op_type == QUANTISE for node in readers):
            continue
        least, most = ranges[name]
        scale = np.float32((most - least) / 255) if most > least else np.float32(1)
        numbers = f"{name}_scale", f"{name}_zero_point"
        zero = np.uint8(np.clip(np.rint(-least / scale), 0, 255))
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for value, name in zip((scale, zero), numbers)
        )
        integers, floats = f"{name}_QuantizeLinear_Output", f"{name}_DequantizeLinear_Output"
        made = [
            helper.make_node(QUANTISE, [name, *numbers], [integers], f"{name}_QuantizeLinear"),
            helper.make_node(DEQUANTISE, [integers, *numbers], [floats], f"{name}_DequantizeLinear"),
        ]
        for node in readers:
            node.input[:] = [floats if given == name else given for given in node.input]
        model.graph.node.extend(made)


def _adds_a_bias(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node adds a constant of one dimension to what a MatMul with a known weight gives it alone."""
    if node.op_type != "Add":
        return False
    for tensor, other in (node.input, node.input[::-1]):
        maker, bias = graph.producer(tensor), graph.constants.get(other)
        if maker is None or maker.op_type != "MatMul" or maker.input[1] not in graph.constants or bias is None:
            continue
        return bias.ndim == 1 and graph.types.get(other) == TensorProto.FLOAT and graph.sole_consumer(tensor) is node
    return False
