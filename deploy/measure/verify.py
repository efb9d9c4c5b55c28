"""A compiled network against ONNX Runtime on the original file; on a mismatch, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
import onnxruntime

from kerf.errors import BadInput, Mismatch
from kerf.kernels.precision import PRECISIONS

ALLOWED = {name: precision.network for name, precision in PRECISIONS.items()}  # of the largest output


def reference_session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors derive from Exception directly
        name = model if isinstance(model, str) else "the model"
        raise BadInput(f"ONNX Runtime cannot load {name}, so nothing can be verified: {error}") from error


def relative_error(y: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference over the largest magnitude; inf when shapes differ or anything is not finite."""
    if y.shape != truth.shape or not (np.isfinite(y).all() and np.isfinite(truth).all()):
        return float("inf")
    return float(np.abs(y - truth).max() / max(np.abs(truth).max(), 1e-12))


class Verified(TypedDict):
    """report.json's keys on what was compared."""

    verified: bool
    max_abs_error: float
    max_relative_error: float


def verify(
    run: Callable, path: Path, shape: tuple[int, ...], inputs: int = 3, seed: int = 0, precision: str = "f32"
) -> Verified:
    """Compare on random inputs of several magnitudes.

    ``precision``: of the products that ``run`` makes (kerf.kernels.precision.PRECISIONS).

    Raises Mismatch with the input and the error otherwise, ValueError where ONNX Runtime's output is not finite.
    """
    session = reference_session(str(path))
    (source,) = session.get_inputs()
    rng = np.random.default_rng(seed)
    worst: Verified = {"verified": True, "max_abs_error": 0.0, "max_relative_error": 0.0}
    for i in range(inputs):
        x = (rng.standard_normal(shape) * (1, 0.1, 3)[i % 3]).astype(np.float32)
        y, truth = run(x), session.run(None, {source.name: x})[0]
        if not np.isfinite(truth).all():
            raise BadInput(
                f"{path}: ONNX Runtime's own output for a random image is not finite; nothing to compare with"
            )
        error = relative_error(y, truth)
        if error > (allowed := ALLOWED[precision]):
            raise Mismatch(f"{path}: output {i} differs from ONNX Runtime by {error:.1e} (allowed {allowed:.0e})")
        worst["max_abs_error"] = max(worst["max_abs_error"], float(np.abs(y - truth).max()))
        worst["max_relative_error"] = max(worst["max_relative_error"], error)
    return worst
