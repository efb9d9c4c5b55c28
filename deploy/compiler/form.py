"""The form in which images lie between kernels, by target: padded planes on CPUs, rows of channels on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import tvm
from tvm import relax
from tvm.target import Target

from kerf.kernels.cpu import planewise
from kerf.kernels.cpu.layout import pitch
from kerf.kernels.cuda import layout as rows
from kerf.kernels.cuda import planewise as rowwise
from kerf.kernels.cuda.emit import reorder
from kerf.kernels.problem import Problem

Shape = tuple[int, int, int, int]  # of images: n, c, h, w


class Form(Protocol):
    """Functions are of one image each, as relax.call_tir takes them."""

    is_nchw: bool  # whether pixels are in NCHW's order, so that equal shapes are equal images

    def type(self, shape: Shape) -> relax.TensorType:
        """Of images in the form."""

    def into(self, shape: Shape) -> tvm.tirx.PrimFunc | None:
        """(NCHW float32, y); None where a reshape does."""

    def back(self, shape: Shape) -> tvm.tirx.PrimFunc | None: ...

    def mean(self, shape: Shape) -> tvm.tirx.PrimFunc: ...

    def scale(self, shape: Shape) -> tvm.tirx.PrimFunc: ...

    def max_pool(self, p: Problem) -> tvm.tirx.PrimFunc: ...


def form_of(target: Target, dtype: str) -> Form:
    """``dtype``: of images (Problem.dtype)."""
    if target.kind.name == "cuda":
        return Rows(dtype)
    return Planes(target)


@dataclass(frozen=True)
class Planes:
    """kerf.kernels.cpu.layout"""

    target: Target
    is_nchw = True

    def type(self, shape: Shape) -> relax.TensorType:
        n, c, h, w = shape
        return relax.TensorType((n, c, pitch(h * w)), "float32")

    def into(self, shape: Shape) -> tvm.tirx.PrimFunc | None:
        return planewise.to_planes(shape, self.target) if _padded(shape) else None

    def back(self, shape: Shape) -> tvm.tirx.PrimFunc | None:
        return planewise.from_planes(shape, self.target) if _padded(shape) else None

    def mean(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return planewise.mean(shape, self.target)

    def scale(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return planewise.scale(shape, self.target)

    def max_pool(self, p: Problem) -> tvm.tirx.PrimFunc:
        return planewise.max_pool(p, self.target)


def _padded(shape: Shape) -> bool:
    return pitch(shape[2] * shape[3]) != shape[2] * shape[3]


@dataclass(frozen=True)
class Rows:
    """kerf.kernels.cuda.layout"""

    dtype: str
    is_nchw = False

    def type(self, shape: Shape) -> relax.TensorType:
        return relax.TensorType(rows.rows_of(shape), self.dtype)

    def into(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return reorder.to_rows(shape, self.dtype)

    def back(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return reorder.from_rows(shape, self.dtype)

    def mean(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return rowwise.mean(shape, self.dtype)

    def scale(self, shape: Shape) -> tvm.tirx.PrimFunc:
        return rowwise.scale(shape, self.dtype)

    def max_pool(self, p: Problem) -> tvm.tirx.PrimFunc:
        return rowwise.max_pool(p, self.dtype)
