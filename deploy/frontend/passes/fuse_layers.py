"""Convolutions and dense layers with what follows them.

Given: Conv (1-D or 2-D), Gemm, or MatMul of any number of rows, with constant fp32 weights, quantised ones taken for
their numbers, then optionally an Add of a tensor of the same shape, then optionally an activation, each read by the
next one only.
Result: one node kerf::Layer (inputs: x, [residual]) and a Layer that holds the Problem, the weight and the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.network import DOMAIN, OP, Layer
from kerf.deploy.frontend.onnx_graph import Graph, attributes, called
from kerf.deploy.frontend.passes.activations import activation_after
from kerf.deploy.frontend.passes.linear import dequantised, stored
from kerf.deploy.frontend.windows import live, of_one_row, window
from kerf.errors import BadInput
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Parts:
    """A layer before what follows it: (O, I / groups, kh, kw) weights, and the nodes that compute it."""

    op: str  # "conv" or "dense"
    problem: Problem
    weight: np.ndarray
    bias: np.ndarray | None
    fused: tuple[onnx.NodeProto, ...]


def fuse_layers(graph: Graph) -> dict[str, Layer]:
    """Fuse in place; layers by name, in the graph's order. Raises ValueError with the node's name."""
    layers: dict[str, Layer] = {}
    for node in list(graph.nodes):
        try:
            _fuse(graph, node, layers)
        except ValueError as error:
            raise BadInput(f"{node.op_type} {called(node)!r}: {str(error).removeprefix('Problem: ')}") from error
    order = [n.name for n in graph.nodes if n.domain == DOMAIN]
    return {name: layers[name] for name in order}


def _fuse(graph: Graph, node: onnx.NodeProto, layers: dict[str, Layer]) -> None:
    """Adds the layer that begins with ``node``, if one does."""
    read = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}.get(node.op_type)
    parts = read(graph, node) if read else None
    if parts is None:
        return
    residual, (name, alpha, beta), absorbed = _epilogue(graph, parts.fused[-1].output[0])
    fused = [*parts.fused, *absorbed]
    problem = replace(parts.problem, activation=name, alpha=alpha, beta=beta, residual=residual is not None)
    bias = np.zeros(problem.out_channels, np.float32) if parts.bias is None else parts.bias
    name = _unique(called(node), layers)
    layers[name] = Layer(name, parts.op, problem, parts.weight, bias)
    inputs = [node.input[0], *([residual] if residual else [])]
    output = list(fused[-1].output)
    quantised = [found[0] for name_of in node.input[1:3] if (found := dequantised(graph, name_of)) is not None]
    graph.replace(fused, helper.make_node(OP, inputs, output, name=name, domain=DOMAIN), quantised)


def _unique(name: str, taken: dict) -> str:
    return name if name not in taken else next(f"{name}_{i}" for i in range(2, 10**6) if f"{name}_{i}" not in taken)


def _has_bias(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])  # an empty name is an input left out


def _row_bias(array: np.ndarray | None, size: int, dims: int = 2) -> TypeGuard[np.ndarray]:
    """Whether this is one number per output column, (O,) or (1, .., O) of at most ``dims`` dimensions, not a column
    that broadcasts the other way.
    """
    return _is_float(array) and array.ndim in range(1, dims + 1) and array.shape == (1,) * (array.ndim - 1) + (size,)


def _is_float(array: np.ndarray | None) -> TypeGuard[np.ndarray]:
    return array is not None and array.dtype == np.float32


def _conv(graph: Graph, node: onnx.NodeProto) -> Parts | None:
    weight, x = stored(graph, node.input[1]), graph.fixed_shape(node.input[0])
    bias = stored(graph, node.input[2]) if _has_bias(node) else None
    if not _is_float(weight) or x is None or (_has_bias(node) and bias is None):
        return None
    a = attributes(node)
    if bias is not None and bias.shape != weight.shape[:1]:  # a kernel would read behind it
        raise BadInput(f"its bias is {'x'.join(map(str, bias.shape))}, its weights have {weight.shape[0]} outputs")
    if weight.ndim == len(x) == 3:  # an image of one row: vectors run along it
        weight, x, a = weight[:, :, None], (*x[:2], 1, x[2]), of_one_row(a)
    if weight.ndim != 4 or len(x) != 4:
        return None
    whole = window(a, tuple(weight.shape[2:]), x[2:])
    n, channels, height, width = x
    if (taken := weight.shape[1] * a.get("group", 1)) != channels:
        raise BadInput(f"its weights take {taken} channels, its input has {channels}")
    sizes = n, channels, height, width, weight.shape[0]
    problem = Problem(*sizes, whole.kernel, whole.stride, whole.padding, whole.dilation, groups=a.get("group", 1))
    part, (rows, columns) = live(whole, x[2:])  # of a window that fits, which the problem has seen to
    problem = replace(problem, kernel=part.kernel, padding=part.padding)
    return Parts("conv", problem, np.ascontiguousarray(weight[:, :, rows, columns]), bias, (node,))


def _dense(x: tuple[int, ...], weight: np.ndarray, bias: np.ndarray | None, fused: tuple[onnx.NodeProto, ...]) -> Parts:
    """y (.., O) = x (.., I) w^T + bias with w (O, I): a 1x1 convolution; every row of x is an image of one pixel."""
    if x[-1] != weight.shape[1]:
        raise BadInput(f"its weights take {weight.shape[1]} columns, its input has {x[-1]}")
    problem = Problem(math.prod(x[:-1]), weight.shape[1], 1, 1, weight.shape[0])
    return Parts("dense", problem, np.ascontiguousarray(weight)[:, :, None, None], bias, fused)


def _gemm(graph: Graph, node: onnx.NodeProto) -> Parts | None:
    a, weight, x = attributes(node), stored(graph, node.input[1]), graph.fixed_shape(node.input[0])
    if not _is_float(weight) or x is None or a.get("transA", 0) or (a.get("alpha", 1.0), a.get("beta", 1.0)) != (1, 1):
        return None
    weight = weight if a.get("transB", 0) else weight.T
    bias = stored(graph, node.input[2]) if _has_bias(node) else None
    if _has_bias(node) and not _row_bias(bias, weight.shape[0]):
        return None
    bias = bias.reshape(-1) if bias is not None else None
    return _dense(x, weight, bias, (node,))


def _matmul(graph: Graph, node: onnx.NodeProto) -> Parts | None:
    weight, x = stored(graph, node.input[1]), graph.fixed_shape(node.input[0])
    if not _is_float(weight) or weight.ndim != 2 or x is None or len(x) < 2:
        return None
    add = graph.sole_consumer(node.output[0])
    if add is not None and add.op_type == "Add" and add.input[0] != add.input[1]:
        other = graph.constants.get(next(i for i in add.input if i != node.output[0]))
        if _row_bias(other, weight.shape[1], len(x)):
            return _dense(x, weight.T, other.reshape(-1), (node, add))
    return _dense(x, weight.T, None, (node,))


def _epilogue(graph: Graph, tensor: str) -> tuple[str | None, Activation, list[onnx.NodeProto]]:
    """(residual tensor, activation, nodes absorbed) after ``tensor``."""
    residual, absorbed = None, []
    node = graph.sole_consumer(tensor)
    if node is not None and node.op_type == "Add" and node.input[0] != node.input[1]:
        other = next(i for i in node.input if i != tensor)
        if other not in graph.constants and graph.shapes.get(other) == graph.shapes.get(tensor) is not None:
            residual, tensor = other, node.output[0]
            absorbed.append(node)
    activation, nodes = activation_after(graph, tensor)
    return residual, activation, absorbed + nodes
