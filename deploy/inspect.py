"""What is in an .onnx file: element and block density of every convolution and dense layer. numpy and onnx only.

A block is n consecutive output kernels at one input channel (1xN pruning, Lin et al., TPAMI 2022). Element density says
how much was pruned; block density says how much of it a kernel can skip: in a block-pruned file the two are equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class LayerDensity:
    """One weight of the file, as output x input x kernel. Densities are shares of non-zeros, in [0, 1]."""

    name: str  # the node's name
    op: str  # "conv", "depthwise", "grouped", "dense"
    shape: tuple[int, ...]  # (out, in per group, *kernel)
    blocks: int  # all blocks, zero or not
    zero_blocks: int
    element: float  # share of elements that are not zero

    @property
    def block(self) -> float:
        """Share of blocks with at least one non-zero."""
        return 1.0 - self.zero_blocks / self.blocks


def densities(path: str | Path, n: int) -> list[LayerDensity]:
    """Element and block density per layer, in the file's order, for blocks of `n` output kernels.

    Outputs that `n` does not divide end in a short block row. Raises FileNotFoundError, or ValueError for a file that
    is not readable as ONNX or n < 1.
    """
    if n < 1:
        raise ValueError(f"block size is {n}; expected at least 1 output kernel per block")
    return [measure(name, op, weight, n) for name, op, weight in weights(read(Path(path)))]


def pattern(path: str | Path, layer: str, n: int, limit: int = 128) -> dict:
    """Which blocks of `layer` are kept: {layer, n, shape, rows}, one string per block row, "1" kept and "0" zero.

    At most the first `limit` block rows and input channels: it is a picture, not a record. A block is kept if any of
    its kernels' elements is. Raises ValueError if the file has no such layer.
    """
    found = {name: weight for name, _, weight in weights(read(Path(path)))}
    if layer not in found:
        raise ValueError(f"{path} has no layer {layer}; its layers are {', '.join(found)}")
    weight = found[layer]
    rows = kept_blocks(weight, n)[:limit, :limit]
    return {
        "layer": layer,
        "n": n,
        "shape": list(weight.shape),
        "rows": ["".join("1" if kept else "0" for kept in row) for row in rows],
    }


def read(path: Path) -> onnx.ModelProto:
    """The parsed file. Raises FileNotFoundError or ValueError with one line."""
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file at {path}; export one with imagenet.py --export_onnx")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own error classes differ between its versions
        raise ValueError(f"{path} is not readable as ONNX (truncated or another format?); export it again") from error
    if not model.graph.node:
        raise ValueError(f"{path} has no ONNX graph in it (truncated or another format?); export it again")
    return model


def weights(model: onnx.ModelProto) -> Iterator[tuple[str, str, np.ndarray]]:
    """(node name, op, weight with outputs first) of every node that multiplies by a stored weight."""
    stored = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in stored:
            continue
        weight = numpy_helper.to_array(stored[node.input[1]])
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
        yield node.name or node.output[0], op, weight


def measure(name: str, op: str, weight: np.ndarray, n: int) -> LayerDensity:
    """Counts zero blocks of `weight`, (out, in, *kernel)."""
    kept = kept_blocks(weight, n)
    zero = int(kept.size - kept.sum())
    return LayerDensity(name, op, weight.shape, kept.size, zero, float((weight != 0).mean()))


def kept_blocks(weight: np.ndarray, n: int) -> np.ndarray:
    """(ceil(out / n), in) bool: does any element of the block's n kernels at this input channel differ from zero?"""
    kept = (weight != 0).reshape(*weight.shape[:2], -1).any(axis=2)
    return np.logical_or.reduceat(kept, np.arange(0, len(kept), n), axis=0)
