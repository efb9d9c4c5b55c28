"""The form in which images lie between a backend's kernels, and its functions on them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import tvm
from tvm import relax

from kerf.kernels.pointwise.program import FLOAT, Pointwise
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType

Shape = tuple[int, int, int, int]  # of images: n, c, h, w
Arrays = tuple[np.ndarray, ...]


class Order(NamedTuple):
    """Which channel stands at place k: first + k % run * step + k // run * stride."""

    first: int
    run: int
    step: int
    stride: int


class Form(Protocol):
    """Functions are of one image each, as relax.call_tir takes them."""

    operators: frozenset[str]  # that it has functions for, by the names of kerf.deploy.compiler.operators
    is_nchw: bool  # whether pixels are in NCHW's order, so that equal shapes are equal images

    def type(self, shape: Shape, dtype: str = FLOAT) -> relax.TensorType:
        """Of images in the form, that are of ``dtype`` as NCHW. Raises Unsupported for integers where the form has
        none.
        """

    def pack(self, images: np.ndarray) -> np.ndarray:
        """Images (n, c, h, w) of float32, or of integers, in the form."""

    def unpack(self, images: np.ndarray, shape: Shape) -> np.ndarray:
        """Back to (n, c, h, w) of float32, or of integers."""

    def into(self, shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc | None:
        """(NCHW of ``dtype``, y); None where a reshape does."""

    def back(self, shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc | None: ...

    def mean(self, shape: Shape, x: TensorType = F32) -> tvm.tirx.PrimFunc:
        """(x, y of floats)"""

    def scale(self, shape: Shape) -> tvm.tirx.PrimFunc: ...

    def max_pool(self, p: Problem) -> tvm.tirx.PrimFunc:
        """(x, y), both of the type of ``p.x``."""


class WholeForm(Form, Protocol):
    """One with functions for every name in kerf.deploy.compiler.operators.EMIT."""

    def average_pool(self, p: Problem, x: TensorType = F32) -> tvm.tirx.PrimFunc:
        """(x, factors (1, 1, h, w) of the sums, y of floats)."""

    def softmax(self, shape: Shape) -> tvm.tirx.PrimFunc:
        """(x, y), over channels."""

    def pointwise(self, f: Pointwise, shape: Shape) -> tvm.tirx.PrimFunc:
        """(operand 0 or its parts, the other operands, y)."""

    def lookup(self, shape: Shape, dtypes: tuple[str, str]) -> tvm.tirx.PrimFunc:
        """(x, table (256,), y), numpy's types of bytes: y is the table's entry x, as a number from 0 on."""

    def planes(self, order: Order, shape: Shape, channels: int, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        """(x of ``shape``, y of ``channels``): channel k of y is channel order(k) of x."""

    def enlarge(self, factors: tuple[int, int], shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        """(x of ``shape``, y): each pixel factors[0] times down and factors[1] times across."""

    def spread(self, factor: int, steps: tuple[int, int], shape: Shape, dtype: str = FLOAT) -> tvm.tirx.PrimFunc:
        """(x of ``shape``, y of factor^2 times fewer channels, each factor times as high and as wide): pixel
        (factor i + a, factor j + b) of channel k of y is pixel (i, j) of channel k steps[0] + (factor a + b) steps[1].
        """

    def interpolate(self, rows: np.ndarray, columns: np.ndarray, shape: Shape) -> tuple[tvm.tirx.PrimFunc, Arrays]:
        """((x of ``shape``, the arrays, y), the arrays): pixels at these places of x, between its own linearly."""
