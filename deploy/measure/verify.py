"""A compiled network against ONNX Runtime on the original file; on a mismatch, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnx
import onnxruntime

from kerf.deploy.frontend.onnx_graph import Value
from kerf.deploy.measure import quantised_reference
from kerf.deploy.measure.bench import are_nothing
from kerf.deploy.measure.quantised_reference import QuantisedReference
from kerf.deploy.measure.samples import alone, draw, listed
from kerf.deploy.runtime import rare_types
from kerf.errors import BadInput, Mismatch
from kerf.kernels.precision import PRECISIONS

ALLOWED = {name: precision.network for name, precision in PRECISIONS.items()}  # of the largest output
LEAST_DIFFERENT = 1e-3  # share of integers


def reference_session(model: onnx.ModelProto | str, optimised: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors derive from Exception directly
        name = model if isinstance(model, str) else "the model"
        raise BadInput(f"ONNX Runtime cannot load {name}, so nothing can be verified: {error}") from error


def relative_error(y: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference over the largest magnitude; inf when shapes differ or anything is not finite; 0 where
    both are nothing.
    """
    if y.shape != truth.shape or not (np.isfinite(y).all() and np.isfinite(truth).all()):
        return float("inf")
    if not truth.size:
        return 0.0
    y, truth = y.astype(np.float64), truth.astype(np.float64)  # half precision overflows
    return 0.0 if are_nothing(y, truth) else float(np.abs(y - truth).max() / max(np.abs(truth).max(), 1e-12))


def different(y: Any, truth: Any) -> float:
    """0 where at most one entry in a thousand differs, else inf; of integers, truth values and whatever else."""
    if not isinstance(truth, np.ndarray):
        return 0.0 if y == truth else float("inf")
    if y.shape != truth.shape or y.dtype != truth.dtype:
        return float("inf")
    return 0.0 if np.count_nonzero(y != truth) <= truth.size * LEAST_DIFFERENT else float("inf")


class Verified(TypedDict):
    """report.json's keys on what was compared."""

    verified: bool
    max_abs_error: float
    max_relative_error: float


def verify(
    run: Callable,
    path: Path,
    inputs: Sequence[Value],
    count: int = 3,
    seed: int = 0,
    precision: str = "f32",
    free: int = 1,
    dense: bool = True,
) -> Verified:
    """Compare ``count`` times on random inputs of several magnitudes; numbers by their largest difference, integers and
    truth values by how many differ: none, but for one in a thousand, since a threshold may lie between two roundings.

    ``precision``: of the products of ``run`` (kerf.kernels.precision.PRECISIONS); ``free``: what open sizes are. A
    network that magnifies roundings may differ by twice what ONNX Runtime differs by from itself, optimising nothing; a
    quantised one as Allowance says, by more where a ``dense`` engine runs parts of it.

    Raises Mismatch with the output and the error otherwise, ValueError where ONNX Runtime's output is not finite.
    """
    quantised = quantised_reference.of(path)
    session = reference_session(str(path))
    reference = rare_types.runner(reference_session(quantised.model, optimised=False) if quantised else session)
    names, rng = [i.name for i in session.get_inputs()], np.random.default_rng(seed)
    outputs = list(dict.fromkeys(o.name for o in session.get_outputs()))  # a file may list one twice
    worst: Verified = {"verified": True, "max_abs_error": 0.0, "max_relative_error": 0.0}
    for i in range(count):
        feed = draw(inputs, rng, (1, 0.1, 3)[i % 3], free)
        fed = dict(zip(names, feed.values()))
        truths = reference(outputs, fed)
        noise = Allowance(path, quantised, outputs, fed, dense)
        for output, y, truth in zip(outputs, listed(run(alone(feed))), truths, strict=True):
            error, largest = errors(path, y, truth, quantised is not None)
            allowed = max(ALLOWED[precision], _rounding(truth))
            if error > allowed and error > (allowed := max(allowed, noise.of(output, truth))):
                which = f"output {i}" if len(truths) == 1 else f"{output!r} of input {i}"
                raise Mismatch(f"{path}: {which} differs from ONNX Runtime by {error:.1e} (allowed {allowed:.0e})")
            worst["max_abs_error"] = max(worst["max_abs_error"], largest)
            worst["max_relative_error"] = max(worst["max_relative_error"], error)
    return worst


class Allowance:
    """How much outputs for one input may differ from the truth. Networks run when it is first asked."""

    def __init__(
        self,
        path: Path,
        quantised: QuantisedReference | None,
        outputs: Sequence[str],
        fed: Mapping[str, np.ndarray],
        dense: bool = True,
    ):
        self._path, self._quantised, self._outputs, self._fed, self._dense = path, quantised, outputs, fed, dense

    def of(self, output: str, truth: Any) -> float:
        """Of numbers twice the error of ONNX Runtime's own network, optimised the other way.

        Of quantised networks twice what the truth differs by from the same network without Q/DQ nodes between its
        layers, since a value between two steps may go to either, and so may the truth's, and at least one step of the
        output; where a dense engine runs parts of it, at least twice the error of ONNX Runtime as it comes, too.
        """
        found = [0.0]
        for other, factor in self._others:
            error = factor * errors(self._path, other[output], truth, self._quantised is not None)[0]
            found.append(error if np.isfinite(error) else 0.0)
        if self._quantised is not None and isinstance(truth, np.ndarray):
            found.append(self._quantised.step(output, truth))
        return max(found)

    @cached_property
    def _others(self) -> list[tuple[dict[str, Any], float]]:
        """Outputs of other computations, and how many times their error is allowed."""
        if self._quantised is None:
            return [(self._run(reference_session(str(self._path), optimised=False)), 2.0)]
        found = [(self._run(reference_session(self._quantised.floats, optimised=False)), 2.0)]
        return [*found, (self._run(reference_session(str(self._path))), 2.0)] if self._dense else found

    def _run(self, session: onnxruntime.InferenceSession) -> dict[str, Any]:
        return dict(zip(self._outputs, rare_types.runner(session)(self._outputs, self._fed)))


def dense_error(path: Path, feed: Mapping[str, np.ndarray]) -> float:
    """What ONNX Runtime as it comes differs by from what a quantised file says, relative to the largest output: dense
    engines that differ by as much from one another are still to be raced. 0 for a file of floats.
    """
    quantised = quantised_reference.of(path)
    if quantised is None:
        return 0.0
    session = reference_session(str(path))
    names = [i.name for i in session.get_inputs()]
    outputs, fed = [o.name for o in session.get_outputs()], dict(zip(names, feed.values()))
    truths = rare_types.runner(reference_session(quantised.model, optimised=False))(outputs, fed)
    noise = Allowance(path, quantised, outputs, fed)
    return max((noise.of(output, truth) for output, truth in zip(outputs, truths)), default=0.0)


def errors(path: Path, y: Any, truth: Any, quantised: bool = False) -> tuple[float, float]:
    """(relative, absolute); of what are no floats (0 or infinity, 0). Bytes of a quantised network are numbers, too."""
    numbers = isinstance(truth, np.ndarray) and (truth.dtype.kind == "f" or _rounding(truth))
    numbers = numbers or (quantised and isinstance(truth, np.ndarray) and truth.dtype in (np.uint8, np.int8))
    if not numbers:
        return different(y, truth), 0.0
    if not np.isfinite(truth).all():
        raise BadInput(f"{path}: ONNX Runtime's own output for a random image is not finite; nothing to compare with")
    largest = np.abs(np.subtract(y, truth, dtype=np.float64)).max(initial=0) if y.shape == truth.shape else 0.0
    return relative_error(y, truth), float(largest)


def _rounding(truth: Any) -> float:
    """Of bfloat16 and floats of 8 bits; 0 for all else."""
    return rare_types.rounding(truth.dtype) if isinstance(truth, np.ndarray) else 0.0
