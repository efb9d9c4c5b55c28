"""Images on GPUs: rows of channels (kerf.kernels.cuda.layout)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from kerf.errors import Unsupported
from kerf.kernels.cuda import planewise
from kerf.kernels.cuda.emit import reorder
from kerf.kernels.cuda.layout import from_rows, rows_of, to_rows
from kerf.kernels.form import Shape
from kerf.kernels.pointwise.program import FLOAT
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType


@dataclass(frozen=True)
class ChannelRows:
    target: Target
    dtype: str
    operators = frozenset(("view", "mean", "scale", "max_pool"))
    is_nchw = False

    def type(self, shape: Shape, dtype: str = FLOAT) -> relax.TensorType:
        if dtype != FLOAT:
            raise Unsupported(f"images of {dtype} on a GPU, whose kernels take floats; compile for a CPU")
        return relax.TensorType(rows_of(shape), self.dtype)

    def pack(self, images: np.ndarray) -> np.ndarray:
        return to_rows(images.astype(self.dtype))

    def unpack(self, images: np.ndarray, shape: Shape) -> np.ndarray:
        return from_rows(images, shape).astype(np.float32)

    def into(self, shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        return reorder.to_rows(shape, self.dtype)

    def back(self, shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        return reorder.from_rows(shape, self.dtype)

    def mean(self, shape: Shape, x: TensorType = F32) -> tvm.tirx.PrimFunc:
        return planewise.mean(shape, self.dtype)

    def scale(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return planewise.scale(shape, self.dtype)

    def max_pool(self, p: Problem) -> tvm.tirx.PrimFunc:
        return planewise.max_pool(p, self.dtype)
