"""The kernels that a file holds, outputs first: of an .onnx network, or of a .safetensors checkpoint without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from kerf import gate
from kerf.deploy.frontend import clean, refusals, sizes
from kerf.deploy.frontend.convert import layers_of
from kerf.deploy.frontend.network import Layer
from kerf.errors import BadInput
from kerf.failures import printable
from kerf.kernels.problem import holds_blocks

MOST_HEADER = 100 << 20  # bytes, as the format has it


class Entry(msgspec.Struct):
    """Of a safetensors header."""

    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data_offsets: tuple[int, int]


class Stored(NamedTuple):
    """``op``: "conv", "depthwise", "grouped" or "dense"; ``weight``: (out, in per group, *kernel)."""

    name: str
    op: str
    weight: np.ndarray
    macs: int | None = None  # multiply-accumulates of one image; None in a checkpoint
    numbers: str = "f32"  # that kerf computes it with
    groups: int = 1

    def holds_blocks(self, n: int) -> bool:
        """Whether a kernel can skip its zero 1xn blocks."""
        outputs, inputs = self.weight.shape[:2]
        return self.op != "depthwise" and holds_blocks(outputs, inputs, self.groups, n)


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
    expected = "a .safetensors checkpoint"
    content = gate.read_bytes(path, expected)
    start = 8 + int.from_bytes(content[:8], "little")
    if not 8 < start <= min(len(content), MOST_HEADER):
        raise BadInput(f"{path} is no safetensors file, or cut short (a header of {start - 8:,} bytes)")
    header = gate.parsed(content[8:start], dict[str, Any], f"{path}: its header", expected)
    found = []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        entry = gate.converted(value, Entry, f"{path}: {printable(name)!r}", expected)
        if entry.dtype != "F32" or len(entry.shape) not in (2, 4):
            continue
        begin, end = entry.data_offsets
        if not (0 <= begin <= end <= len(content) - start and 4 * math.prod(entry.shape) == end - begin):
            raise BadInput(f"{path} is no safetensors file, or cut short ({printable(name)!r} is not where it says)")
        if min(entry.shape) < 1:
            continue
        weight = np.frombuffer(content, "<f4", math.prod(entry.shape), start + begin).reshape(entry.shape)
        op = "dense" if weight.ndim == 2 else "depthwise" if weight.shape[1] == 1 else "conv"
        found.append(Stored(name.removesuffix(".weight"), op, weight))
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
    return Stored(
        layer.name, op, weight[:, :, 0, 0] if op == "dense" else weight, macs, problem.numbers, problem.groups
    )
