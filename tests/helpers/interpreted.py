"""A converted network run node by node: layers by numpy's reference, everything else by ONNX Runtime."""

import numpy as np
import onnxruntime

from kerf.deploy.frontend.network import Layer, Network, Piece
from kerf.deploy.frontend.onnx_graph import reads
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.cut import is_layer
from kerf.kernels.reference import conv2d, conv2d_integer


def interpreted(network: Network, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name; of layers of integers what kernels must compute to the last bit."""
    values = dict(feed)
    for node in network.graph.nodes:
        if is_layer(node):
            y = layer(network.layers[node.name], *(values[name] for name in node.input))
            values[node.output[0]] = y.reshape(network.graph.shape(node.output[0]))
            continue
        given = tuple(sorted(name for name in reads(node) if name not in network.graph.constants))
        piece = Piece("onnxruntime", (node,), given, tuple(name for name in node.output if name))
        values |= dict(zip(piece.outputs, whole(onnx_piece.model(network.graph, piece), {n: values[n] for n in given})))
    return {v.name: values.get(v.name, network.graph.constants.get(v.name)) for v in network.outputs}


def layer(of: Layer, x: np.ndarray, *residual: np.ndarray) -> np.ndarray:
    p = of.problem
    x, residual = x.reshape(p.in_shape), [r.reshape(p.out_shape) for r in residual]
    if p.x.quantised:
        return conv2d_integer(p, x, of.weight, of.weight_scale, of.bias, of.types, *residual)
    return conv2d(p, x, of.weight, of.bias, *residual).astype(np.float32)


def whole(model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's outputs, without its optimisations: on CPUs without VNNI those saturate sums of 8-bit products."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feed)
