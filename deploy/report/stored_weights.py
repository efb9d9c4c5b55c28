"""The kernels that a file holds, outputs first: of an .onnx network, or of a .safetensors checkpoint without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerf.deploy.frontend import clean, refusals, sizes
from kerf.deploy.frontend.convert import layers_of
from kerf.deploy.frontend.network import Layer
from kerf.errors import BadInput


class Stored(NamedTuple):
    """``op``: "conv", "depthwise", "grouped" or "dense"; ``weight``: (out, in per group, *kernel)."""

    name: str
    op: str
    weight: np.ndarray
    macs: int | None = None  # multiply-accumulates of one image; None in a checkpoint
    numbers: str = "f32"  # that kerf computes it with


class Holding(NamedTuple):
    """What a file holds; ``refused``: lines on what has weights but no kernel in kerf, and on what is quantised in
    vain, if there are such layers.
    """

    layers: list[Stored]
    refused: list[str]


def stored(path: Path, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None) -> Holding:
    """Of either kind of file; of a network the layers that kerf compiles, as it compiles them.

    shapes, batch: as kerf.deploy.frontend.clean.read. Raises FileNotFoundError, or BadInput for a file that cannot be
    read or leaves sizes free.
    """
    return Holding(tensors(path), []) if is_checkpoint(path) else network(path, shapes, batch)


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


def network(path: Path, shapes: Mapping[str, Sequence[int]] | None, batch: int | None) -> Holding:
    """The layers with batch norm folded, so that zeros are those that kernels find."""
    if not path.is_file():
        what = "a folder without a bundle's manifest.json" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; expected an .onnx file, a .safetensors checkpoint or a bundle")
    graph = clean.read_graph(path, shapes, batch)
    sizes.refuse_free(path, graph.original)
    layers = layers_of(path, graph)
    said = [*refusals.said_of(graph, len(layers)), *refusals.in_floats(layers)]
    return Holding([of(layer) for layer in layers.values()], said)


def of(layer: Layer) -> Stored:
    problem, weight = layer.problem, layer.weight
    op = layer.op
    if problem.groups > 1:
        op = "depthwise" if weight.shape[1] == 1 else "grouped"
    macs = problem.macs // problem.batch
    return Stored(layer.name, op, weight[:, :, 0, 0] if op == "dense" else weight, macs, problem.numbers)
