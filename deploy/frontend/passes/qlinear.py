"""Operators of integers as the nodes that they stand for.

Given: QLinearConv, QLinearMatMul, and ONNX Runtime's QLinearAdd, QLinearConcat, QGemm and the like, with constant
scales and zero points. Result: DequantizeLinear of each input, the operator of floats, QuantizeLinear of its result:
the form in which other quantised files come. Q/DQ of ONNX Runtime's domain, which its tool writes where asked to, are
ONNX's where they name zero points of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes, called
from kerf.deploy.frontend.passes.linear import BYTES, DEQUANTISE, QUANTISE

CONTRIBUTED = "com.microsoft"
PER_AXIS = 13  # opset: since then Q/DQ take a scale for each index of an axis


class Form(NamedTuple):
    """``op``: of floats. A tensor, its scale and its zero point are three inputs from each of ``tensors`` on, None: all
    that follow the result's; those of the result are two from ``result`` on. ``bias``: an input of int32, in steps of
    the product of both scales.
    """

    op: str
    tensors: tuple[int, ...] | None
    result: int
    bias: int | None = None


ONE, TWO = (0,), (0, 3)
FORMS = {
    "QLinearConv": Form("Conv", TWO, 6, 8),
    "QLinearMatMul": Form("MatMul", TWO, 6),
    "QGemm": Form("Gemm", TWO, 7, 6),
    "QLinearAdd": Form("Add", TWO, 6),
    "QLinearMul": Form("Mul", TWO, 6),
    "QLinearSigmoid": Form("Sigmoid", ONE, 3),
    "QLinearLeakyRelu": Form("LeakyRelu", ONE, 3),
    "QLinearGlobalAveragePool": Form("GlobalAveragePool", ONE, 3),
    "QLinearAveragePool": Form("AveragePool", ONE, 3),
    "QLinearSoftmax": Form("Softmax", ONE, 3),
    "QLinearConcat": Form("Concat", None, 0),
}


def expand_qlinear(graph: Graph) -> bool:
    """In place; whether there was one."""
    nodes, found = [], False
    for node in graph.nodes:
        if _contributed(graph, node):
            node.domain, found = "", True
        form = FORMS.get(node.op_type) if graph.opset >= PER_AXIS else None
        made = _expanded(graph, node, form) if form else None
        nodes += made or [node]
        found = found or made is not None
    if found:
        graph.set_nodes(nodes)
    return found


def _contributed(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a Q/DQ node of ONNX Runtime's domain is the same as ONNX's."""
    if node.domain != CONTRIBUTED or node.op_type not in (QUANTISE, DEQUANTISE) or graph.opset < PER_AXIS:
        return False
    scale, zero = (graph.constants.get(name) for name in (*node.input, "", "")[1:3])
    return scale is not None and scale.dtype == np.float32 and zero is not None and str(zero.dtype) in BYTES


def _expanded(graph: Graph, node: onnx.NodeProto, form: Form) -> list[onnx.NodeProto] | None:
    """None where a scale or zero point is computed or left out, or the layout is another one than ONNX's."""
    a, name = attributes(node), called(node)
    starts = range(2, len(node.input), 3) if form.tensors is None else form.tensors
    given = [[*node.input[start : start + 3]] for start in starts]
    result = [*node.input[form.result : form.result + 2]]
    if node.op_type == "QGemm" and len(result) < 2:
        result = []  # its sums stay floats
    numbers = [constant for _, *pair in given for constant in pair] + result
    if any(constant not in graph.constants for constant in numbers) or a.pop("channels_last", 0):
        return None
    if a.pop("opset", PER_AXIS) < PER_AXIS:  # of Softmax, which went over all axes from this one on
        return None
    if not result and node.op_type != "QGemm":
        return None
    nodes, inputs = [], []
    axis: dict[str, Any] | None
    for i, triple in enumerate(given):
        axis = _axis(graph, node, triple) if i == 1 else {}
        if axis is None:
            return None
        inputs.append(f"{name}.{i}.dequantised")
        nodes.append(helper.make_node(DEQUANTISE, triple, [inputs[-1]], f"{name}.{i}.dequantise", **axis))
    if form.bias is not None and len(node.input) > form.bias and node.input[form.bias]:
        scale = np.asarray(graph.constants[given[0][1]] * graph.constants[given[1][1]], np.float32)
        scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
        graph.note(f"{name}.bias.scale", scale)
        inputs.append(f"{name}.bias.dequantised")
        numbers, axis = [node.input[form.bias], f"{name}.bias.scale"], {} if scale.ndim == 0 else {"axis": 0}
        nodes.append(helper.make_node(DEQUANTISE, numbers, [inputs[-1]], f"{name}.bias.dequantise", **axis))
    output = f"{name}.floats" if result else node.output[0]
    nodes.append(helper.make_node(form.op, inputs, [output], node.name, **a))
    if result:
        nodes.append(helper.make_node(QUANTISE, [output, *result], [node.output[0]], f"{name}.quantise"))
    return nodes


def _axis(graph: Graph, node: onnx.NodeProto, triple: Sequence[str]) -> dict[str, Any] | None:
    """Of the second tensor's scales, as an attribute: its output channels; None where they are no row of numbers."""
    scale = graph.constants[triple[1]]
    if scale.size == 1:
        return {}
    if scale.ndim != 1 or node.op_type not in ("QLinearConv", "QLinearMatMul", "QGemm"):
        return None
    if node.op_type == "QLinearConv":
        return {"axis": 0}
    return {"axis": 0 if attributes(node).get("transB", 0) else -1}
