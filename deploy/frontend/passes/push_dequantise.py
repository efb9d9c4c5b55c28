"""Moves on integers in place of moves on floats.

Given: DequantizeLinear in front of nodes that leave numbers as they are (MaxPool, Reshape, Concat of equal scales …);
QuantizeLinear right behind a DequantizeLinear of the same scale and zero point, or twice of one tensor; quantised
constants.
Result: the DequantizeLinear behind those nodes, one for each reader; the integers themselves in place of the pair, and
once; of constants that no layer has for its weights, their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.passes.drop_identities import drop_identities, drop_unread
from kerf.deploy.frontend.passes.fold_constants import fold_constants
from kerf.deploy.frontend.passes.linear import BYTES, DEQUANTISE, QUANTISE, Steps, stored
from kerf.deploy.frontend.passes.linear import steps as steps_of
from kerf.deploy.frontend.passes.unsigned import LAYERS, moved
from kerf.kernels.tensor_type import TensorType

RESHAPES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
SMALL = 2**16  # numbers of a quantised constant that is read as floats: bounds, factors, biases


def push_dequantise(graph: Graph) -> bool:
    """In place; whether there is a Q/DQ node. Shapes and types are inferred anew."""
    if not any(node.op_type in (QUANTISE, DEQUANTISE) for node in graph.nodes):
        return False
    _fold(graph)
    graph.set_nodes(_pushed(graph))
    while drop_identities(graph) + fold_constants(graph) + drop_unread(graph):
        pass
    _for_each_reader(graph)
    graph.infer()
    return True


def _fold(graph: Graph) -> None:
    """Constants: quantised ones, transposed and reshaped weights, and numbers that no layer multiplies."""
    gone = []
    for node in graph.nodes:
        found, source, result = steps_of(graph, node), (*node.input, "")[0], node.output[0]
        if found is not None and node.op_type == QUANTISE and source in graph.constants and found.dtype in BYTES:
            graph.note(result, found.quantise(graph.constants[source]))
            gone.append(node)
        elif found is not None and source in graph.constants and graph.constants[source].size <= SMALL:
            readers = graph.consumers(result)
            if all(r.op_type not in (*LAYERS, "ConvTranspose", *RESHAPES) for r in readers):
                numbers = stored(graph, result)
                assert numbers is not None  # its node has steps, and reads a constant
                graph.note(result, numbers)
                gone.append(node)
    graph.remove(gone)
    for node in graph.nodes:
        if node.op_type in RESHAPES:
            _reshape_stored(graph, node)


def _reshape_stored(graph: Graph, node: onnx.NodeProto) -> None:
    """A quantised constant that is transposed or reshaped behind its DequantizeLinear: before."""
    maker, dims = graph.producer(node.input[0]), graph.fixed_shape(node.output[0])
    found = steps_of(graph, maker)
    if maker is None or found is None or maker.input[0] not in graph.constants or found.block or dims is None:
        return
    array, result = graph.constants[maker.input[0]], node.output[0]
    axis = found.axis
    if node.op_type == "Transpose":
        order = tuple(attributes(node).get("perm", reversed(range(array.ndim))))
        array, axis = array.transpose(order), None if axis is None else order.index(axis)
    else:
        axis = None if axis is None else _same_axis(array.shape, dims, axis)
        if axis is None and found.axis is not None:
            return
        array = array.reshape(dims)
    graph.note(f"{result}.integers", np.ascontiguousarray(array))
    names = [f"{result}.integers", *maker.input[1:]]
    a: dict[str, Any] = {} if axis is None else {"axis": axis}
    graph.replace([node], helper.make_node(DEQUANTISE, names, [result], node.name, **a))


def _same_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Where an axis is once sizes are others; None where its indices are no longer those of one axis."""
    outer = [i for i in range(len(after)) if math.prod(after[:i]) == math.prod(before[:axis])]
    return next((i for i in outer if after[i] == before[axis]), None)


def _pushed(graph: Graph) -> list[onnx.NodeProto]:
    integers: dict[str, tuple[str, Steps, list[str]]] = {}  # of floats: what they are made of
    quantised: dict[tuple[str, TensorType], onnx.NodeProto] = {}  # the first of equal nodes
    nodes = []
    for node in graph.nodes:
        found = steps_of(graph, node)
        if found is not None and node.op_type == DEQUANTISE and found.tensor_type is not None:
            integers[node.output[0]] = node.input[0], found, list(node.input[1:])
        given = [integers.get(name) for name in moved(node) or ()]
        whole = [one for one in given if one is not None]
        if whole and len(whole) == len(given) and all(whole[0][1].same(one[1]) for one in whole):
            nodes += _behind(node, whole, integers)
        elif found is not None and node.op_type == QUANTISE and node.input[0] in integers:
            source, own, _ = integers[node.input[0]]
            same = own.same(found)
            nodes.append(helper.make_node("Identity", [source], list(node.output), node.name) if same else node)
        elif found is not None and node.op_type == QUANTISE and found.tensor_type is not None:
            first = quantised.setdefault((node.input[0], found.tensor_type), node)
            again = helper.make_node("Identity", [first.output[0]], list(node.output), node.name)
            nodes.append(node if first is node else again)
        else:
            nodes.append(node)
    return nodes


def _behind(
    node: onnx.NodeProto, given: list[tuple[str, Steps, list[str]]], integers: dict[str, tuple[str, Steps, list[str]]]
) -> list[onnx.NodeProto]:
    """The node on integers, and the DequantizeLinear of each result."""
    _, found, numbers = given[0]
    results = [name for name in node.output if name]
    inputs = [source for source, _, _ in given] + list(node.input[len(given) :])
    names = [f"{name}.integers" for name in results]
    nodes = [helper.make_node(node.op_type, inputs, names, node.name, **attributes(node))]
    for name, result in zip(names, results):
        nodes.append(helper.make_node(DEQUANTISE, [name, *numbers], [result], f"{result}.dequantise"))
        integers[result] = name, found, numbers
    return nodes


def _for_each_reader(graph: Graph) -> None:
    """A DequantizeLinear of its own for each node that reads the numbers: it costs less than to keep floats."""
    nodes = []
    ends = {o.name for o in graph.outputs}
    for node in graph.nodes:
        nodes.append(node)
        result = node.output[0]
        if node.op_type != DEQUANTISE or node.input[0] in graph.constants:
            continue
        readers = graph.consumers(result)
        for i, reader in enumerate(readers if result in ends else readers[1:], 1):
            name = f"{result}.{i}"
            places = [k for k, given in enumerate(reader.input) if given == result]
            if places:  # else a branch captures it
                nodes.append(helper.make_node(DEQUANTISE, list(node.input), [name], name, **attributes(node)))
                for k in places:
                    reader.input[k] = name
    graph.set_nodes(nodes)
