"""What a quantised file computes, and how much another computation of it may differ.

The truth is ONNX Runtime's, with Q/DQ nodes and floats between them, optimising nothing: its integer kernels round in
other places, and on x86 CPUs without VNNI they saturate sums of two products in 16 bits (vpmaddubsw).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.loading import MOST, load
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.linear import DEQUANTISE, QUANTISE, Steps, dequantised, steps
from kerf.deploy.frontend.passes.qlinear import FORMS, expand_qlinear
from kerf.deploy.frontend.passes.unsigned import KINDS, integers, moved
from kerf.deploy.frontend.passes.widen_half import widen_half

ROUNDED = 1 + 1e-3


class QuantisedReference:
    """Of a file with Q/DQ nodes, or operators that stand for them."""

    def __init__(self, path: Path):
        graph = Graph(load(path))
        while expand_qlinear(graph):
            graph.infer()
        self.model = graph.model()
        if widen_half(graph):  # scales of float16 are read as any others
            graph.infer()
        self._scales = {o.name: scale for o in graph.outputs if (scale := _scale(graph, o.name))}
        self.floats = _without_quantising(graph)

    def step(self, output: str, truth: np.ndarray) -> float:
        """One step of an output's integers, of its largest number; 0 where it has none. Floats of two integers differ
        by a step and their rounding.
        """
        largest = float(np.abs(truth.astype(np.float64)).max(initial=0))
        scale = self._scales.get(output, 1.0 if truth.dtype in (np.uint8, np.int8) else 0.0)
        return ROUNDED * scale / largest if largest else 0.0


def of(path: Path) -> QuantisedReference | None:
    """None for a file of floats, and for one too large to be edited in memory."""
    names = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    if names.isdisjoint((QUANTISE, DEQUANTISE, *FORMS)):
        return None
    found = QuantisedReference(path)
    return found if found.model.ByteSize() < MOST else None


def _scale(graph: Graph, tensor: str) -> float | None:
    """Of a tensor of floats that are made of integers, perhaps moved since, or narrowed."""
    maker = graph.producer(tensor)
    while maker is not None and (moved(maker) or maker.op_type == "Cast"):
        tensor = maker.input[0]
        maker = graph.producer(tensor)
    found = dequantised(graph, tensor)
    kind = found[1].tensor_type if found is not None else None
    return kind.scale if kind is not None else None


def _without_quantising(graph: Graph) -> onnx.ModelProto:
    """The same with activations that are not rounded, only kept within the bounds of their integers, which is how
    quantised files spell Relu; weights keep their values.
    """
    between = integers(graph, KINDS)
    nodes = []
    for node in graph.nodes:
        found = steps(graph, node)
        if found is not None and node.op_type == QUANTISE and node.output[0] in between:
            names = [f"{node.output[0]}.{bound}" for bound in ("least", "most")]
            for name, bound in zip(names, _limits(found)):
                graph.note(name, np.asarray(bound, np.float32))
            nodes.append(helper.make_node("Clip", [node.input[0], *names], list(node.output), node.name))
        elif node.op_type == DEQUANTISE and node.input[0] in between:
            nodes.append(helper.make_node("Identity", [node.input[0]], list(node.output), node.name))
        else:
            nodes.append(node)
    graph.set_nodes(nodes)
    graph.infer()
    return graph.model()


def _limits(found: Steps) -> tuple[float, float]:
    """The least and the largest number that integers stand for."""
    bits, signed = int(found.dtype.lstrip("uint")), not found.dtype.startswith("u")
    least = -(2 ** (bits - 1)) if signed else 0
    scale, zero = found.scale.item(), found.zero.item()
    return scale * (least - zero), scale * (least + 2**bits - 1 - zero)
