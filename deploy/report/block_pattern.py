"""Which blocks of a layer are kept, as rows of text that a picture is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np

from kerf.deploy.report.inspect import refuse
from kerf.deploy.report.stored_weights import stored
from kerf.errors import BadInput
from kerf.kernels.bsr import kept_blocks


class Pattern(TypedDict):
    """An entry of report.json's "block_patterns"."""

    layer: str
    n: int  # output kernels of a block
    shape: list[int]  # of the weight
    blocks: list[int]  # block rows, input channels
    kept: float  # share of all blocks
    rows: list[str]  # a character per block, "1" for a kept one and "0" for zero


def pattern(path: str | Path, layer: str, n: int, limit: int = 128) -> Pattern:
    """Of a `layer` in an .onnx file or a .safetensors checkpoint.

    Raises FileNotFoundError, or BadInput for a file that cannot be read or has no such layer.
    """
    refuse(n)
    path = Path(path)
    found = {s.name: s.weight for s in stored(path).layers}
    if layer not in found:
        raise BadInput(f"{path} has no layer {layer}; its layers are {', '.join(found)}")
    return of(layer, found[layer], n, limit)


def of(layer: str, weight: np.ndarray, n: int, limit: int) -> Pattern:
    """Rows of at most the first `limit` block rows and input channels; "blocks" and "kept" are of all."""
    kept = kept_blocks(weight, n)
    return {
        "layer": layer,
        "n": n,
        "shape": list(weight.shape),
        "blocks": list(kept.shape),
        "kept": float(kept.mean()),
        "rows": ["".join("1" if cell else "0" for cell in row) for row in kept[:limit, :limit]],
    }
