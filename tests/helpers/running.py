"""One function on arrays, every access checked."""

import numpy as np
import tvm

from kerf.kernels.lowering import compile_func


def run(func, target, *arrays, out, dtype="float32") -> np.ndarray:
    """The result, of shape ``out`` and of ``dtype``, of a function (*arrays, y)."""
    y = tvm.runtime.tensor(np.full(out, np.nan if dtype == "float32" else 77, dtype))
    with tvm.transform.PassContext(config={"tirx.instrument_bound_checkers": True}):
        compile_func(func, target)["main"](*[tvm.runtime.tensor(a) for a in arrays], y)
    return y.numpy()
