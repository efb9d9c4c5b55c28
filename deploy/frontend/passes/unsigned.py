"""Signed activations as unsigned ones, which kerf's integer kernels take.

Given: a tensor of int8 that QuantizeLinear makes, perhaps moved by nodes that leave its numbers as they are, and
DequantizeLinear reads. Result: the same in uint8, every integer and zero point 128 larger, which stand for the same
numbers. An int8 input of the network stays what it is: behind its DequantizeLinear comes a pair in uint8 where a layer
reads it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.passes.linear import DEQUANTISE, QUANTISE, steps

LAYERS = ("Conv", "Gemm", "MatMul")
KINDS = [getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (4, 8, 16)]  # of quantised tensors
# What leaves numbers as they are and in order; of Concat all inputs are moved, of others the first.
MOVES = (
    *("MaxPool", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"),
    *("Slice", "Split", "Resize", "Upsample"),
)


def moved(node: onnx.NodeProto) -> list[str] | None:
    """The tensors whose numbers a node moves; None for one that computes."""
    if node.op_type not in MOVES or (node.op_type != "Split" and len([o for o in node.output if o]) > 1):
        return None
    a = attributes(node)
    if node.op_type in ("Resize", "Upsample"):
        crops = a.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
        if a.get("mode", b"nearest") != b"nearest" or crops:
            return None
    return list(node.input) if node.op_type == "Concat" else [node.input[0]]


def unsigned(graph: Graph) -> bool:
    """In place; whether there was anything. Types are inferred anew."""
    signed = integers(graph, {TensorProto.INT8})
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        tensor = node.output[0] if node.op_type == QUANTISE else node.input[0] if node.op_type == DEQUANTISE else ""
        if tensor in signed:
            nodes.append(_shifted(graph, node))
        else:
            nodes.append(node)
            nodes += _pair(graph, node)
    if len(nodes) == len(graph.nodes) and not signed:
        return False
    renamed = {pair.input[0]: nodes[i + 1].output[0] for i, pair in enumerate(nodes) if pair.name.endswith(UNSIGNED)}
    for node in nodes:
        if node.op_type in LAYERS and node.input[0] in renamed:
            node.input[0] = renamed[node.input[0]]
    graph.set_nodes(nodes)
    graph.infer()
    return True


UNSIGNED = ".unsigned"


def integers(graph: Graph, kinds: Collection[int]) -> set[str]:
    """Tensors of these types (ONNX's numbers) that QuantizeLinear makes and DequantizeLinear reads, with what moves
    them in between: nothing else knows that they are integers.
    """
    ends = {v.name for v in (*graph.inputs, *graph.outputs)}
    found = {
        t
        for node in graph.nodes
        for t in node.output
        if graph.types.get(t) in kinds and t not in ends and (_quantises(graph, node) or moved(node))
    }
    while True:
        wrong = {t for t in found if not all(_reads_alike(graph, n, t, found) for n in graph.consumers(t))}
        for t in found - wrong:
            maker = graph.producer(t)
            if maker is not None and maker.op_type != QUANTISE and not set(moved(maker) or [""]) <= found:
                wrong.add(t)
        if not wrong:
            return found
        found -= wrong


def _quantises(graph: Graph, node: onnx.NodeProto) -> bool:
    found = steps(graph, node)
    return node.op_type == QUANTISE and found is not None and found.axis is None


def _reads_alike(graph: Graph, node: onnx.NodeProto, tensor: str, found: set[str]) -> bool:
    if node.op_type == DEQUANTISE:
        read = steps(graph, node)
        return read is not None and read.axis is None
    return tensor in (moved(node) or ()) and {o for o in node.output if o} <= found


def _shifted(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto:
    """The Q/DQ node in uint8."""
    found = steps(graph, node)
    assert found is not None  # integers() has asked
    zero = f"{node.output[0]}.zero{UNSIGNED}"
    graph.note(zero, np.asarray(found.zero.item() + 128, np.uint8))
    a = {k: v for k, v in attributes(node).items() if k not in ("axis", "output_dtype")}
    return helper.make_node(node.op_type, [*node.input[:2], zero], list(node.output), node.name, **a)


def _pair(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Q/DQ in uint8 behind a DequantizeLinear of int8 that a layer reads; none behind any other node."""
    found = steps(graph, node) if node.op_type == DEQUANTISE and node.input[0] not in graph.constants else None
    if found is None or found.dtype != "int8" or found.axis is not None:
        return []
    output = node.output[0]
    if not any(reader.op_type in LAYERS and reader.input[0] == output for reader in graph.consumers(output)):
        return []
    zero = f"{output}.zero{UNSIGNED}"
    graph.note(zero, np.asarray(found.zero.item() + 128, np.uint8))
    names = f"{output}.bytes", f"{output}.again"
    return [
        helper.make_node(QUANTISE, [output, node.input[1], zero], [names[0]], f"{output}{UNSIGNED}"),
        helper.make_node(DEQUANTISE, [names[0], node.input[1], zero], [names[1]], f"{output}.dequantise"),
    ]
