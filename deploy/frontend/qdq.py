"""Q/DQ: the ONNX form of a quantised network.

Given: a file whose convolutions and dense layers have f32 weights that lie on grids of integers, and scales.
Result: in front of every such layer QuantizeLinear and DequantizeLinear of its input, uint8, one scale; its weight
int8, with a DequantizeLinear of one scale per output channel. Weights of fewer than 8 bits are stored as int8 too, of
which they use the values from −(2^(b−1) − 1) to 2^(b−1) − 1. Biases stay f32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import attributes
from kerf.errors import BadInput

OFF_GRID = 1e-3  # steps that a folded weight may be away from its grid


class Grid(Protocol):
    """Bits of a layer's weight; scale and zero point of its input, x = scale (q - zero), q of uint8."""

    @property
    def bits(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def zero(self) -> int: ...


def insert(file: onnx.ModelProto, grids: Mapping[str, Grid]) -> onnx.ModelProto:
    """The file with Q/DQ around the layers of these names, in place, checked by onnx.checker.

    Raises ValueError for a name that no layer has, and for a weight that is on no such grid.
    """
    graph, found = file.graph, set()
    stored = {i.name: i for i in graph.initializer}
    integers: set[str] = set()  # weights that are done: a layer may be called twice
    inputs: dict[tuple[str, float, int], str] = {}  # tensors that are done: several layers may read one
    nodes = []
    for node in graph.node:
        path = node.name.partition("#")[0]
        axis = _axis(node)
        if path in grids and axis is not None and (node.input[1] in stored or node.input[1] in integers):
            grid, weight = grids[path], node.input[1]
            found.add(path)
            key = node.input[0], grid.scale, grid.zero
            if key not in inputs:
                inputs[key], made = _quantised_input(graph, node.name, *key)
                nodes += made
            if weight not in integers:
                nodes.append(_quantised_weight(graph, stored.pop(weight), axis, grid.bits))
                integers.add(weight)
            node.input[0], node.input[1] = inputs[key], f"{weight}.dequantised"
        nodes.append(node)
    if missing := [path for path in grids if path not in found]:
        raise BadInput(f"{missing[0]} is quantised, but is no layer with a stored weight in the exported graph")
    whole = onnx.GraphProto()  # the nodes are the graph's own: it must hold them until they are copied
    whole.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(whole.node)
    onnx.checker.check_model(file, full_check=True)
    return file


def _axis(node: onnx.NodeProto) -> int | None:
    """Of a layer's weight: where its output channels are."""
    if node.op_type == "Conv":
        return 0
    return int(not attributes(node).get("transB", 0)) if node.op_type == "Gemm" else None


def _quantised_input(
    graph: onnx.GraphProto, name: str, tensor: str, scale: float, zero: int
) -> tuple[str, list[onnx.NodeProto]]:
    prefix = f"{name}.input"
    constants = (np.float32(scale), f"{prefix}_scale"), (np.uint8(zero), f"{prefix}_zero")
    graph.initializer.extend(numpy_helper.from_array(np.array(value), of) for value, of in constants)
    numbers = [of for _, of in constants]
    return f"{prefix}_dequantised", [
        helper.make_node("QuantizeLinear", [tensor, *numbers], [f"{prefix}_quantised"], name=f"{prefix}.quantise"),
        helper.make_node(
            "DequantizeLinear",
            [f"{prefix}_quantised", *numbers],
            [f"{prefix}_dequantised"],
            name=f"{prefix}.dequantise",
        ),
    ]


def _quantised_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int, bits: int) -> onnx.NodeProto:
    """Replaces the initialiser by its integers; the node that makes floats of them."""
    name, weight = tensor.name, numpy_helper.to_array(tensor)
    rest, most = tuple(i for i in range(weight.ndim) if i != axis), 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=rest, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(most), np.float32(1)).astype(np.float32)
    steps = weight / scale
    integers = np.rint(steps)
    if (off := float(np.abs(steps - integers).max())) > OFF_GRID:
        raise BadInput(f"{name} is {off:.2g} steps away from a grid of {bits} bits; quantise the weight before export")
    graph.initializer.remove(tensor)
    constants = (integers.astype(np.int8), f"{name}.integers"), (scale.reshape(-1), f"{name}.scale")
    graph.initializer.extend(numpy_helper.from_array(value, of) for value, of in constants)
    names = [of for _, of in constants]
    zero = f"{name}.zero"
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.size, np.int8), zero))
    return helper.make_node(
        "DequantizeLinear", [*names, zero], [f"{name}.dequantised"], name=f"{name}.dequantise", axis=axis
    )


INTEGER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether the file computes on integers anywhere: by Q/DQ, or by operators that are made for it (QLinear...)."""
    return any(n.op_type in INTEGER or n.op_type.startswith("QLinear") for n in model.graph.node)
