"""Images on CPUs: padded planes (kerf.kernels.cpu.layout)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from kerf.kernels.cpu import moves, planewise
from kerf.kernels.cpu.emit.lookup import lookup
from kerf.kernels.cpu.layout import from_planes, pitch, to_planes
from kerf.kernels.cpu.pointwise import pointwise
from kerf.kernels.form import Arrays, Order, Shape
from kerf.kernels.pointwise.program import FLOAT, Pointwise
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType


@dataclass(frozen=True)
class PaddedPlanes:
    target: Target
    dtype: str = FLOAT  # of the first layer's images; every function is told its own
    operators = frozenset(
        {
            *("view", "mean", "scale", "softmax", "max_pool", "average_pool"),
            *("pointwise", "lookup", "planes", "enlarge", "spread", "interpolate"),
        }
    )
    is_nchw = True

    def type(self, shape: Shape, dtype: str = FLOAT) -> relax.TensorType:
        n, c, h, w = shape
        return relax.TensorType((n, c, pitch(h * w)), dtype)

    def pack(self, images: np.ndarray) -> np.ndarray:
        return to_planes(images)

    def unpack(self, images: np.ndarray, shape: Shape) -> np.ndarray:
        return from_planes(images, shape)

    def into(self, shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc | None:
        return planewise.to_planes(shape, self.target, dtype) if _padded(shape) else None

    def back(self, shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc | None:
        return planewise.from_planes(shape, self.target, dtype) if _padded(shape) else None

    def mean(self, shape: Shape, x: TensorType = F32) -> tvm.tirx.PrimFunc:
        return planewise.mean(shape, self.target, x)

    def scale(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return planewise.scale(shape, self.target)

    def softmax(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return planewise.softmax(shape, self.target)

    def max_pool(self, p: Problem) -> tvm.tirx.PrimFunc:
        return planewise.max_pool(p, self.target)

    def average_pool(self, p: Problem, x: TensorType = F32) -> tvm.tirx.PrimFunc:
        return planewise.average_pool(p, self.target, x)

    def pointwise(self, f: Pointwise, shape: Shape) -> tvm.tirx.PrimFunc:
        return pointwise(f, shape, self.target)

    def lookup(self, shape: Shape, dtypes: tuple[str, str]) -> tvm.tirx.PrimFunc:
        return lookup(shape, self.target, dtypes)

    def planes(self, order: Order, shape: Shape, channels: int, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        return moves.planes(order, shape, channels, self.target, dtype)

    def enlarge(self, factors: tuple[int, int], shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        return moves.enlarge(factors, shape, self.target, dtype)

    def spread(self, factor: int, steps: tuple[int, int], shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        return moves.spread(factor, steps, shape, self.target, dtype)

    def interpolate(self, rows: np.ndarray, columns: np.ndarray, shape: Shape) -> tuple[tvm.tirx.PrimFunc, Arrays]:
        made = moves.tables(rows, columns, shape, self.target)
        return moves.interpolate(made, (len(rows), len(columns)), shape, self.target), made


def _padded(shape: Shape) -> bool:
    return pitch(shape[2] * shape[3]) != shape[2] * shape[3]
