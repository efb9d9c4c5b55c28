"""Why a file cannot be compiled, in the words of who made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend.network import Layer
from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes, called
from kerf.deploy.frontend.passes.linear import stored
from kerf.errors import BadInput

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def training(path: Path, graph: Graph) -> None:
    """Raises ValueError for a network that was exported in training mode: its outputs depend on chance, or on what else
    is in the batch.
    """
    for node in graph.nodes:
        on = node.op_type == "BatchNormalization" and attributes(node).get("training_mode", 0)
        if node.op_type == "Dropout" and len(node.input) > 2:
            on = bool(np.any(graph.constants.get(node.input[2], True)))
        if on:
            raise BadInput(
                f"{path}: {node.op_type} {called(node)!r} is in training mode; call model.eval() and export again"
            )


def without_kernel(graph: Graph) -> dict[str, list[str]]:
    """Why nodes with weights are no layers of kerf, once fuse_layers has taken those that are: reason -> node names."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        reason = _reason(graph, node)
        if reason:
            found.setdefault(reason, []).append(called(node))
    return found


def said_of(graph: Graph, layers: int) -> list[str]:
    """A line for ``without_kernel``, or none: how many of all that have weights, and why."""
    found = without_kernel(graph)
    if not found:
        return []
    count = sum(map(len, found.values()))
    reasons = "; ".join(f"{len(names)} {reason} ({_some(names)})" for reason, names in found.items())
    return [f"{count} of {count + layers} convolutions and dense layers have no kernel here: {reasons}"]


def in_floats(layers: Mapping[str, Layer]) -> list[str]:
    """A line on layers of floats whose weights the file has quantised, or none: how many, and why."""
    found: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.floats:
            found.setdefault(layer.floats, []).append(name)
    if not found:
        return []
    reasons = "; ".join(f"{len(names)} for {reason} ({_some(names)})" for reason, names in found.items())
    count = sum(map(len, found.values()))
    return [f"{count} of {len(layers)} layers have quantised weights and are computed in floats: {reasons}"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def nothing(path: Path, graph: Graph) -> BadInput:
    """What to raise for a network without a layer that kerf has kernels for."""
    reasons = [f"{_some(names)}: {reason}" for reason, names in without_kernel(graph).items()]
    said = "; ".join(reasons[:3]) or "no convolution or dense layer"
    expected = "2-D convolutions or dense layers, with float32 or quantised weights"
    return BadInput(f"{path}: nothing to compile: {said}; expected {expected}")


def _reason(graph: Graph, node: onnx.NodeProto) -> str | None:
    """None for a node without weights, and a product of two computed tensors."""
    if node.op_type in ("ConvInteger", "MatMulInteger") and node.domain in STANDARD:
        return "with an input that is quantised while the network runs"
    if node.op_type not in WEIGHTED or node.domain not in STANDARD:
        return None
    weight = stored(graph, node.input[1])
    if node.op_type == "MatMul" and weight is None and node.input[0] not in graph.constants:
        return None
    if node.op_type == "ConvTranspose":
        return "transposed convolution"
    if weight is None:
        return _computed(graph, node.input[1])
    if weight.dtype != np.float32:
        return f"with {weight.dtype} weights"
    if node.op_type == "Conv" and weight.ndim not in (3, 4):
        return f"{weight.ndim - 2}-D convolution"
    if graph.fixed_shape(node.input[0]) is None:
        return "with an input of no fixed size"
    return FORMS[node.op_type]


FORMS = {
    "Conv": "convolution with a bias that is computed",
    "Gemm": "Gemm with alpha, beta, transA or a bias for each row",
    "MatMul": "MatMul with constants of more than two dimensions",
}


def _computed(graph: Graph, weight: str) -> str:
    maker = graph.producer(weight)
    if maker is not None and maker.op_type == "DequantizeLinear":
        return "with quantised weights"
    return "with weights that are computed, or an input"


def wrong_shapes(path: Path, graph: Graph) -> str | None:
    """What ONNX's own inference says against the file's shapes; None if it finds nothing."""
    try:
        onnx.shape_inference.infer_shapes(graph.inferred, strict_mode=True, data_prop=True)
    except Exception as error:  # its errors derive from Exception directly
        lines = [line for line in str(error).splitlines() if "(op_type" in line] or str(error).splitlines()
        return f"{path}: shapes do not fit together: {' '.join(lines[-1].split())}"
    return None
