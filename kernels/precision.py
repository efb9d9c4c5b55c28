"""Precision: what a layer of floats is asked for in one word, that of its products. Sums are float32 everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from kerf.errors import BadInput
from kerf.kernels.tensor_type import F16, F32, TF32, TensorType


class Types(TypedDict, total=False):
    """The fields of Problem that are its types."""

    x: TensorType
    w: TensorType
    y: TensorType
    residual_type: TensorType
    middle: TensorType


@dataclass(frozen=True)
class Precision:
    """``kernel`` and ``network``: what one layer may differ from the reference, and what a network may differ from ONNX
    Runtime, of the largest output. Rounded inputs of every product: random networks forgive least.
    """

    types: Types
    kernel: float
    network: float


PRECISIONS = {
    "f32": Precision({"x": F32, "w": F32, "y": F32}, 1e-4, 1e-4),  # sums in another order differ by about 1e-6
    "tf32": Precision({"x": F32, "w": TF32, "y": F32}, 5e-3, 1e-2),  # networks by 3e-3
    "f16": Precision({"x": F16, "w": F16, "y": F16}, 5e-3, 6e-2),  # by 3e-2
}
TYPES = ("x", "w", "y", "residual_type", "middle")


def types_of(precision: str) -> Types:
    """Raises BadInput for a word that is none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise BadInput(f"Problem: precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision].types
