"""Batch norm into the convolution before it.

Given: Conv with constant weight, read only by a BatchNormalization with constant statistics.
Result: that Conv with scaled weight and bias; zeros of the weight stay zeros.
"""

import numpy as np
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
        gamma, beta, mean, var = (graph.constants[name].astype(np.float64) for name in norm.input[1:5])
        scale = gamma / np.sqrt(var + attributes(norm).get("epsilon", 1e-5))
        bias = graph.constants[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else np.zeros(len(scale))
        folded = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        names = [f"{norm.output[0]}.weight", f"{norm.output[0]}.bias"]
        graph.constants.update(zip(names, (folded, ((bias - mean) * scale + beta).astype(np.float32))))
        graph.shapes.update({name: graph.constants[name].shape for name in names})
        new = helper.make_node("Conv", [conv.input[0], *names], list(norm.output), name=conv.name, **attributes(conv))
        graph.replace([conv, norm], new)
