"""Batch norm into the convolution before it.

Given: Conv with constant weight, read only by a BatchNormalization with constant statistics.
Result: that Conv with scaled weight and bias; zeros of the weight stay zeros.
"""

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes


def fold_batchnorm(graph: Graph) -> None:
    for norm in [n for n in graph.nodes if n.op_type == "BatchNormalization"]:
        if attributes(norm).get("training_mode", 0):
            continue
        conv = graph.producer(norm.input[0])
        if conv is None or conv.op_type != "Conv" or graph.sole_consumer(conv.output[0]) is not norm:
            continue
        if any(name and name not in graph.constants for name in (*conv.input[1:], *norm.input[1:])):
            continue
        weight = graph.constants[conv.input[1]]
        if weight.dtype != np.float32:
            continue
        scale, mean, beta = normalising(graph, norm)
        bias = graph.constants[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else np.zeros(len(scale))
        folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        with_weights(graph, conv, norm, folded, (bias - mean) * scale + beta)


def normalising(graph: Graph, norm: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scale, mean, beta) of each channel, float64: (x - mean) scale + beta is what a node of constants gives."""
    gamma, beta, mean, var = (graph.constants[name].astype(np.float64) for name in norm.input[1:5])
    return gamma / np.sqrt(var + attributes(norm).get("epsilon", 1e-5)), mean, beta


def with_weights(
    graph: Graph, conv: onnx.NodeProto, last: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray
) -> onnx.NodeProto:
    """``conv`` with this weight and bias, as float32, where it and its only reader ``last`` were, with the output of
    ``last``.
    """
    names = [f"{last.output[0]}.weight", f"{last.output[0]}.bias"]
    for name, array in zip(names, (weight, bias)):
        graph.note(name, array.astype(np.float32))
    made = helper.make_node("Conv", [conv.input[0], *names], list(last.output), name=conv.name, **attributes(conv))
    graph.replace([conv, last], made)
    return made
