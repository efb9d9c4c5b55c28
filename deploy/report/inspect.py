"""What is in a file: element and block density of every convolution and dense layer, and what they will bring.

A block is n consecutive output kernels at one input channel (1xN pruning, Lin et al., TPAMI 2022). Element density says
how much was pruned; block density says how much of it a kernel can skip: in a block-pruned file the two are equal.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.onnx_graph import called
from kerf.errors import BadInput
from kerf.kernels.bsr import kept_blocks

BREAK_EVEN = {1: 0.59, 2: 0.82, 4: 0.92, 8: 0.97, 16: 0.96, 32: 0.95}  # N -> density
EMPTY = 0.08  # of the dense kernel's time


@dataclass(frozen=True)
class LayerDensity:
    """One weight of the file, as output x input x kernel. Densities are shares of non-zeros, in [0, 1]."""

    name: str  # the node's name
    op: str  # "conv", "depthwise", "grouped", "dense"
    shape: tuple[int, ...]  # (out, in per group, *kernel)
    blocks: int  # all blocks, zero or not
    zero_blocks: int
    element: float  # share of elements that are not zero
    macs: int | None = None  # multiply-accumulates of one image as if nothing were zero, where sizes are known

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

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
        raise BadInput(f"block size is {n}; expected at least 1 output kernel per block")
    return [measure(name, op, weight, n) for name, op, weight in weights(read(Path(path)))]


def survey(path: str | Path, blocks: Sequence[int]) -> list[tuple[LayerDensity, dict[int, float]]]:
    """(layer for blocks of the first N, block density for every N) of an .onnx file or a .safetensors checkpoint.

    Multiply-accumulates are known of an .onnx file alone. Raises as `densities`.
    """
    path = Path(path)
    if min(blocks) < 1:
        raise BadInput(f"block size is {min(blocks)}; expected at least 1 output kernel per block")
    found, macs = stored(path), {}
    if path.suffix != ".safetensors":
        macs = {name: layer.problem.macs // layer.problem.batch for name, layer in convert(path, 1, 1.0).layers.items()}
    rows = []
    for name, op, weight in found:
        kept = {n: float(kept_blocks(weight, n).mean()) for n in blocks}
        rows.append((replace(measure(name, op, weight, blocks[0]), macs=macs.get(name)), kept))
    return rows


def tensors(path: Path) -> list[tuple[str, str, np.ndarray]]:
    """(module, op, weight) of the kernels in a safetensors file. Raises FileNotFoundError or ValueError."""
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
            found.append((name.removesuffix(".weight"), op, weight))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no safetensors file, or cut short ({error})") from error
    if not found:
        raise BadInput(f"{path} holds no fp32 kernels")
    return found


def expected_gain(density: float, n: int) -> float:
    """How many times faster than kerf's dense kernel a convolution with this block density is likely to be.

    A line through the break-even density of N and what an empty layer still costs, both medians of
    scripts/break_even.py on one machine (docs/benchmarks): below 1, the dense kernel is taken instead.
    """
    known = min(BREAK_EVEN, key=lambda k: abs(math.log(k / n)))
    return 1 / (EMPTY + (1 - EMPTY) * density / BREAK_EVEN[known])


def scattered(layer: LayerDensity) -> bool:
    """Whether zeros are there and mostly not in blocks: a kernel cannot skip them."""
    return layer.op == "conv" and layer.element < 0.8 and layer.zero_blocks / layer.blocks < (1 - layer.element) / 2


def pattern(path: str | Path, layer: str, n: int, limit: int = 128) -> dict:
    """Which blocks of `layer` in an .onnx file or a .safetensors checkpoint are kept, as `picture` has it.

    Raises as `densities`, and ValueError if the file has no such layer.
    """
    if n < 1:
        raise BadInput(f"block size is {n}; expected at least 1 output kernel per block")
    path = Path(path)
    found = {name: weight for name, _, weight in stored(path)}
    if layer not in found:
        raise BadInput(f"{path} has no layer {layer}; its layers are {', '.join(found)}")
    return picture(layer, found[layer], n, limit)


def picture(layer: str, weight: np.ndarray, n: int, limit: int) -> dict:
    """{layer, n, shape, blocks, kept, rows}: a string per block row of `weight`, "1" for a kept block and "0" for zero.

    Of at most the first `limit` block rows and input channels; "blocks" (rows, columns) and "kept", their share, are of
    all. A block is kept if any of its kernels' elements is.
    """
    kept = kept_blocks(weight, n)
    return {
        "layer": layer,
        "n": n,
        "shape": list(weight.shape),
        "blocks": list(kept.shape),
        "kept": float(kept.mean()),
        "rows": ["".join("1" if cell else "0" for cell in row) for row in kept[:limit, :limit]],
    }


def stored(path: Path) -> list[tuple[str, str, np.ndarray]]:
    """(layer, op, weight with outputs first) of either kind of file."""
    return tensors(path) if path.suffix == ".safetensors" else list(weights(read(path)))


def read(path: Path) -> onnx.ModelProto:
    """The parsed file. Raises FileNotFoundError or ValueError with one line."""
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
        yield called(node), op, weight


def measure(name: str, op: str, weight: np.ndarray, n: int) -> LayerDensity:
    """Counts zero blocks of `weight`, (out, in, *kernel)."""
    kept = kept_blocks(weight, n)
    zero = int(kept.size - kept.sum())
    return LayerDensity(name, op, weight.shape, kept.size, zero, float((weight != 0).mean()))
