"""Activations, however they are spelled.

Given: nodes that compute one tensor from another, number by number, with constants: Relu; Sigmoid and Mul; Div, Erf,
Add, Mul, Mul; Add, Clip, Mul, Div …
Result: the Activation that they are, told by what they make of numbers, whatever their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes
from kerf.kernels import reference
from kerf.kernels.pointwise.activation import ACTIVATIONS, LARGEST, PARAMETERS, Activation

MOST_NODES = 9  # of a spelling; the longest known, gelu by tanh, has 8
# Where spellings are compared: about 0, where activations bend, and far out, where clips would show.
POINTS = np.concatenate([np.linspace(-12, 12, 997), [0.0], *(s * np.logspace(-6, 8, 57) for s in (1.0, -1.0))])
CLOSE = 2e-6  # of float64, with constants rounded to float32
Values = np.ndarray


def activation_of(graph: Graph, node: onnx.NodeProto) -> Activation | None:
    """What one node is by itself."""
    if not _pointwise(graph, node, {node.input[0]}):
        return None
    return _with_numbers(graph, node) or _by_values(graph, node.input[0], [node])


def activation_after(graph: Graph, tensor: str) -> tuple[Activation, list[onnx.NodeProto]]:
    """The activation of ``tensor`` and the nodes that compute it, as many as belong to it; Activation() and none where
    there is none, or where another node reads what would vanish.
    """
    found: tuple[Activation, list[onnx.NodeProto]] = Activation(), []
    if graph.fixed_shape(tensor) is None:
        return found
    for nodes in _regions(graph, tensor):
        named = _with_numbers(graph, nodes[0]) if len(nodes) == 1 else None
        activation = named or _by_values(graph, tensor, nodes)
        if activation is not None:
            found = activation, nodes
    return found


def spelled(graph: Graph, taken: set[str]) -> Iterator[tuple[str, Activation, list[onnx.NodeProto]]]:
    """(tensor, its activation, the nodes), of several nodes each, none with an output in ``taken``: to which whoever
    takes an activation adds those that no other may have.
    """
    for node in graph.nodes:
        for tensor in node.input if node.op_type in VALUE else ():
            if node.output[0] in taken:
                break
            if tensor in graph.constants:
                continue
            activation, nodes = activation_after(graph, tensor)
            if len(nodes) > 1 and taken.isdisjoint(n.output[0] for n in nodes):
                yield tensor, activation, nodes


def _regions(graph: Graph, tensor: str) -> Iterator[list[onnx.NodeProto]]:
    """Growing sets of nodes that read ``tensor``, one another and constants, and only the last of which others read."""
    outputs = {o.name for o in graph.outputs}
    nodes: list[onnx.NodeProto] = []
    known = {tensor}
    readers: dict[str, list[onnx.NodeProto]] = {}
    while len(nodes) < MOST_NODES:
        for name in known - set(readers):
            readers[name] = graph.consumers(name)
        waiting = [n for name in known for n in readers[name] if n not in nodes]
        node = next((n for n in waiting if _pointwise(graph, n, known)), None)
        if node is None:
            return
        nodes.append(node)
        known.add(node.output[0])
        readers[node.output[0]] = graph.consumers(node.output[0])
        inner = known - {node.output[0]}
        closed = not inner & outputs and all(n in nodes for name in inner for n in readers[name])
        if closed and graph.shapes.get(node.output[0]) in (None, graph.shapes[tensor]):
            yield list(nodes)


def _pointwise(graph: Graph, node: onnx.NodeProto, known: set[str]) -> bool:
    """Whether a node computes numbers from numbers of ``known`` tensors and constants of one number."""
    if node.op_type not in VALUE or node.domain not in STANDARD or len(node.output) != 1:
        return False
    others = [graph.constants.get(name) for name in node.input if name and name not in known]
    return all(c is not None and c.size == 1 and c.dtype.kind == "f" for c in others)


def _with_numbers(graph: Graph, node: onnx.NodeProto) -> Activation | None:
    """Of one node with numbers of its own."""
    a = attributes(node)
    if node.op_type == "LeakyRelu":
        return Activation("leakyrelu", a.get("alpha", 0.01))
    if node.op_type == "Elu":
        return Activation("elu", a.get("alpha", 1.0))
    if node.op_type == "PRelu" and node.input[1] in graph.constants:
        return Activation("leakyrelu", graph.constants[node.input[1]].item())
    if node.op_type == "Clip":
        low, high = _bounds(graph, node)
        if (low, high) == (0.0, 6.0):
            return Activation("relu6")
        return Activation("relu") if (low, high) == (0.0, LARGEST) else Activation("clip", low, high)
    return None


def _bounds(graph: Graph, node: onnx.NodeProto) -> tuple[float, float]:
    """Of a Clip, whose inputs were attributes up to opset 10."""
    a = attributes(node)
    given = [graph.constants[name].item() if name else None for name in (*node.input, "", "")[1:3]]
    low, high = (a.get(key) if bound is None else bound for key, bound in zip(("min", "max"), given))
    return max(-LARGEST, -LARGEST if low is None else low), min(LARGEST, LARGEST if high is None else high)


def _by_values(graph: Graph, tensor: str, nodes: list[onnx.NodeProto]) -> Activation | None:
    """The activation without numbers of its own that has the values of the nodes at POINTS."""
    values: dict[str, Values] = {tensor: POINTS}
    with np.errstate(all="ignore"):
        for node in nodes:
            given = [
                values[name] if name in values else graph.constants[name].astype(np.float64).reshape(())
                for name in node.input
                if name
            ]
            values[node.output[0]] = VALUE[node.op_type](attributes(node), *given)
    y = values[nodes[-1].output[0]]
    return next((a for a, truth in TRUTH.items() if np.allclose(y, truth, rtol=CLOSE, atol=CLOSE)), None)


TRUTH = {a: reference.activate(a, POINTS) for a in map(Activation, ACTIVATIONS) if a.name not in PARAMETERS}
del TRUTH[Activation("none")]


def _of(name: str) -> Callable[..., Values]:
    return lambda a, v: reference.activate(Activation(name), v)


def _clip(a: dict, v: Values, low: float | None = None, high: float | None = None) -> Values:
    low, high = (
        a.get(key, -np.inf if key == "min" else np.inf) if x is None else x for key, x in (("min", low), ("max", high))
    )
    return np.minimum(np.maximum(v, low), high)


# Operators' values by ONNX: attributes, inputs in float64.
VALUE: dict[str, Callable[..., Values]] = {
    "Add": lambda a, v, w: v + w,
    "Sub": lambda a, v, w: v - w,
    "Mul": lambda a, v, w: v * w,
    "Div": lambda a, v, w: v / w,
    "Pow": lambda a, v, w: np.power(v, w),
    "Max": lambda a, *v: np.maximum.reduce(np.broadcast_arrays(*v)),
    "Min": lambda a, *v: np.minimum.reduce(np.broadcast_arrays(*v)),
    "Neg": lambda a, v: -v,
    "Exp": lambda a, v: np.exp(v),
    "Log": lambda a, v: np.log(v),
    "Reciprocal": lambda a, v: 1 / v,
    "Erf": _of("erf"),
    "Tanh": _of("tanh"),
    "Relu": _of("relu"),
    "Sigmoid": _of("sigmoid"),
    "HardSwish": _of("hardswish"),
    "Mish": _of("mish"),
    "Softplus": lambda a, v: np.logaddexp(0, v),
    "HardSigmoid": lambda a, v: np.clip(a.get("alpha", 0.2) * v + a.get("beta", 0.5), 0, 1),
    "Swish": lambda a, v: v * reference.sigmoid(a.get("alpha", 1.0) * v),
    "Gelu": lambda a, v: reference.activate(
        Activation("gelu_tanh" if a.get("approximate", b"none") == b"tanh" else "gelu"), v
    ),
    "Clip": _clip,
    "LeakyRelu": lambda a, v: np.where(v < 0, a.get("alpha", 0.01) * v, v),
    "PRelu": lambda a, v, slope: np.where(v < 0, slope * v, v),
    "Elu": lambda a, v: np.where(v < 0, a.get("alpha", 1.0) * np.expm1(np.minimum(v, 0)), v),
}
