"""Why a file cannot be compiled, in the words of who made it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph, attributes, called
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


def nothing(path: Path, graph: Graph) -> ValueError:
    """What to raise for a network without a layer that kerf has kernels for."""
    found = list(dict.fromkeys(_reasons(graph)))
    said = "; ".join(found[:3]) or "no convolution or dense layer"
    return ValueError(f"{path}: nothing to compile: {said}; expected 2-D convolutions or dense layers, float32 weights")


def _reasons(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            continue
        weight, name = graph.constants.get(node.input[1]), called(node)
        if node.op_type == "ConvTranspose":
            yield f"{name!r} is a transposed convolution"
        elif weight is None:
            yield f"the weights of {name!r} are computed, or an input"
        elif weight.dtype != np.float32:
            yield f"the weights of {name!r} are {weight.dtype}"
        elif node.op_type == "Conv" and weight.ndim not in (3, 4):
            yield f"{name!r} is a {weight.ndim - 2}-D convolution"
        else:
            yield f"{name!r} ({node.op_type}) has a form without a kernel"


def wrong_shapes(path: Path, graph: Graph) -> str | None:
    """What ONNX's own inference says against the file's shapes; None if it finds nothing."""
    try:
        onnx.shape_inference.infer_shapes(graph.original, strict_mode=True, data_prop=True)
    except Exception as error:  # its errors derive from Exception directly
        lines = [line for line in str(error).splitlines() if "(op_type" in line] or str(error).splitlines()
        return f"{path}: shapes do not fit together: {' '.join(lines[-1].split())}"
    return None
