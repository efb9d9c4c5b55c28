"""Tensors of types that ONNX Runtime's Python does not take as arrays: bfloat16, floats of 8 bits.

They go through its OrtValues, bytes as they are. Numbers of less than a byte, which it packs, do not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes  # a requirement of TVM; numpy has these types, by name too, once it is imported
import numpy as np

from kerf.errors import Unsupported

# ONNX's number of a type, and ONNX Runtime's word for it
NUMBERS = {
    np.dtype(ml_dtypes.bfloat16): (16, "tensor(bfloat16)"),
    np.dtype(ml_dtypes.float8_e4m3fn): (17, "tensor(float8e4m3fn)"),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (18, "tensor(float8e4m3fnuz)"),
    np.dtype(ml_dtypes.float8_e5m2): (19, "tensor(float8e5m2)"),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (20, "tensor(float8e5m2fnuz)"),
}
DTYPES = {number: dtype for dtype, (number, _) in NUMBERS.items()}
WORDS = {word for _, word in NUMBERS.values()}
PACKED = {f"tensor({name})" for name in ("int4", "uint4", "int2", "uint2", "float4e2m1")}


def rare(session: Any) -> bool:
    """Whether an input or output of an ONNX Runtime session is of such a type. Raises Unsupported for packed ones."""
    values = (*session.get_inputs(), *session.get_outputs())
    for value in values:
        if value.type in PACKED:
            raise Unsupported(
                f"{value.name!r} is a {value.type}, which ONNX Runtime's Python cannot be given; cast it in the network"
            )
    return any(value.type in WORDS for value in values)


def rounding(dtype: np.dtype) -> float:
    """What two numbers of such a type that round differently differ by, relatively; 0 for other types."""
    return float(ml_dtypes.finfo(dtype).eps) if dtype in NUMBERS else 0.0


def element_type(dtype: np.dtype) -> Any:
    """As ONNX Runtime's bindings take it."""
    return NUMBERS[dtype][0] if dtype in NUMBERS else dtype


def runner(session: Any) -> Callable[[Sequence[str], Mapping[str, np.ndarray]], list[Any]]:
    """session.run(names of outputs, arrays) for every type; where one is rare, for tensors alone."""
    return partial(_run, session) if rare(session) else session.run


def _run(session: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
    given = {name: _value(np.asarray(array, order="C")) for name, array in feeds.items()}
    return [_array(value) for value in session.run_with_ort_values(list(names), given)]


def _value(array: np.ndarray) -> Any:
    from onnxruntime import OrtValue

    if array.dtype not in NUMBERS:
        return OrtValue.ortvalue_from_numpy(array)
    number, _ = NUMBERS[array.dtype]
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), number)


def _array(value: Any) -> Any:
    dtype = DTYPES.get(value.element_type()) if value.is_tensor() else None
    if dtype is None:
        return value.numpy()
    found = np.empty(value.shape(), dtype)
    if found.size:
        ctypes.memmove(found.ctypes.data, value.data_ptr(), found.nbytes)
    return found
