"""Biases that make up for what rounding of weights adds to the mean of each output channel.

Given: layers with a known weight, and the mean of each channel of their inputs over all samples.
Result: the model with those biases less mean(x) (Q(w) - w), summed over inputs and taps, as in Nagel et al., ICCV 2019,
arXiv 1906.04721, section 4.2; padding counts as if it were image.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes

MOST = 127  # of an int8 weight, symmetric


def corrected(graph: Graph, means: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """``means``: tensor -> (channels,). The graph stays as it was. Convolutions and Gemm; others have no bias."""
    model = graph.model()
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in stored or node.input[0] not in means:
            continue
        weight = _rows(node, numpy_helper.to_array(stored[node.input[1]]))
        if weight is None:
            continue
        mean, groups = means[node.input[0]], attributes(node).get("group", 1)
        per_group = mean.reshape(groups, 1, -1)
        shift = (_error(weight).reshape(groups, len(weight) // groups, -1) * per_group).sum(2).reshape(-1)
        name = node.input[2] if len(node.input) > 2 else ""
        before = numpy_helper.to_array(stored[name]).reshape(-1) if name else np.zeros(len(weight))
        if before.size != len(weight):
            continue
        made = f"{node.input[1]}.corrected_bias"
        while made in stored:
            made += "_"
        tensor = numpy_helper.from_array((before - shift).astype(np.float32), made)
        model.graph.initializer.append(tensor)
        stored[made] = model.graph.initializer[-1]
        del node.input[2:]
        node.input.append(made)
    return model


def _rows(node: onnx.NodeProto, weight: np.ndarray) -> np.ndarray | None:
    """(outputs, inputs, taps) of f32; None for a Gemm with factors."""
    if weight.dtype != np.float32:
        return None
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1)
    a = attributes(node)
    if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or a.get("transA", 0):
        return None
    return (weight if a.get("transB", 0) else weight.T)[..., None]


def _error(weight: np.ndarray) -> np.ndarray:
    """(outputs, inputs): what rounding adds, summed over taps."""
    scale = np.abs(weight).max(axis=(1, 2), keepdims=True).astype(np.float64) / MOST
    scale = np.where(scale > 0, scale, 1)
    return (np.rint(weight / scale) * scale - weight).sum(axis=2)
