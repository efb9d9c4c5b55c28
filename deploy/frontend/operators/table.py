"""The table of operators, and the answer whether kerf has a function for a node. No TVM."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from kerf.deploy.frontend.network import DOMAIN, OP
from kerf.deploy.frontend.onnx_graph import STANDARD, Graph
from kerf.deploy.frontend.operators import elementwise, moves, normalising, pooling, quantising, views
from kerf.deploy.frontend.operators.operation import Operation, Refusal

# How a node is read, by its operator: Operation, or Refusal.
READ: dict[str, Callable[[Graph, onnx.NodeProto], Operation]] = {
    "MaxPool": pooling.max_pool,
    "GlobalAveragePool": pooling.global_mean,
    "ReduceMean": pooling.mean,
    "AveragePool": pooling.average_pool,
    "Softmax": normalising.softmax,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), elementwise.binary),
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Mish", "Swish", "Gelu"), elementwise.activation),
    **dict.fromkeys(("Clip", "LeakyRelu", "Elu"), elementwise.activation),
    "QuantizeLinear": quantising.quantise,
    "DequantizeLinear": quantising.dequantise,
    "HardSigmoid": elementwise.hardsigmoid,
    "PRelu": elementwise.prelu,
    "BatchNormalization": elementwise.batch_norm,
    "Concat": elementwise.concat,
    "Split": moves.split,
    "Slice": moves.slice_channels,
    "Transpose": moves.transpose,
    "DepthToSpace": moves.depth_to_space,
    **dict.fromkeys(("Resize", "Upsample"), moves.resize),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"), views.view),
}


def operation(graph: Graph, node: onnx.NodeProto) -> Operation:
    """What ``node`` asks of kerf's functions for CPUs. Raises Refusal where they have no answer."""
    read = READ.get(node.op_type) if node.domain in STANDARD else None
    if read is None:
        raise Refusal(f"kerf has no function for {node.op_type}")
    return read(graph, node)


def reason(graph: Graph, node: onnx.NodeProto) -> str | None:
    """Why kerf's functions for CPUs cannot compute a node, in one clause; None where they can, layers included."""
    if (node.domain, node.op_type) == (DOMAIN, OP):
        return None
    try:
        operation(graph, node)
    except Refusal as refusal:
        return str(refusal)
    return None
