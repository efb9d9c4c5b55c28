"""The kernels that a file holds, outputs first: of an .onnx network, or of a .safetensors checkpoint without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from kerf.deploy.frontend.onnx_graph import called
from kerf.errors import BadInput


class Stored(NamedTuple):
    """``op``: "conv", "depthwise", "grouped" or "dense"; ``weight``: (out, in per group, *kernel)."""

    name: str
    op: str
    weight: np.ndarray


def stored(path: Path) -> list[Stored]:
    """Of either kind of file. Raises FileNotFoundError, or BadInput for a file that cannot be read."""
    return tensors(path) if is_checkpoint(path) else list(weights(read(path)))


def is_checkpoint(path: Path) -> bool:
    return path.suffix == ".safetensors"


def tensors(path: Path) -> list[Stored]:
    """The modules' kernels in a safetensors file."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        found = []
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] != "F32" or len(entry["shape"]) not in (2, 4):
                continue
            begin, end = (start + offset for offset in entry["data_offsets"])
            weight = np.frombuffer(content[begin:end], "<f4").reshape(entry["shape"])
            op = "dense" if weight.ndim == 2 else "depthwise" if weight.shape[1] == 1 else "conv"
            found.append(Stored(name.removesuffix(".weight"), op, weight))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no safetensors file, or cut short ({error})") from error
    if not found:
        raise BadInput(f"{path} holds no fp32 kernels")
    return found


def read(path: Path) -> onnx.ModelProto:
    """The parsed file."""
    if not path.is_file():
        what = "a folder without a bundle's manifest.json" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; expected an .onnx file, a .safetensors checkpoint or a bundle")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own error classes differ between its versions
        raise BadInput(f"{path} is not readable as ONNX (truncated or another format?); export it again") from error
    if not model.graph.node:
        raise BadInput(f"{path} has no ONNX graph in it (truncated or another format?); export it again")
    return model


def weights(model: onnx.ModelProto) -> Iterator[Stored]:
    """Of every node that multiplies by a stored weight, named by it."""
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            groups = attributes.get("group", 1)
            op = "conv" if groups == 1 else "depthwise" if weight.shape[1] == 1 else "grouped"
        else:
            op = "dense"
            if weight.ndim != 2:
                continue
            if not attributes.get("transB", 0):
                weight = weight.T
        yield Stored(called(node), op, weight)
