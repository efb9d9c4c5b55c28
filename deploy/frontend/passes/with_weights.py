"""A convolution that takes the place of itself and what is folded into it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import Graph, attributes


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
