"""Random inputs of a network, and its outputs as a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerf.deploy.frontend.onnx_graph import Value
from kerf.errors import BadInput


def draw(inputs: Sequence[Value], rng: np.random.Generator, scale: float = 1.0, free: int = 1) -> dict[str, np.ndarray]:
    """An array for each input, by name: floats of the standard normal distribution times ``scale``; integers of 0 and
    1, which every use of them, indices too, takes, or any bytes where the network takes them for numbers; ``free``:
    what open sizes become. Raises BadInput for strings.
    """
    return {value.name: _array(value, rng, scale, free) for value in inputs}


def _array(value: Value, rng: np.random.Generator, scale: float, free: int) -> np.ndarray:
    if value.dtype == "object" or value.shape is None:
        raise BadInput(
            f"input {value.name!r} holds strings, or has no known number of axes: nothing can be drawn for it"
        )
    shape = tuple(free if size is None else size for size in value.shape)
    if value.any_byte:
        limits = np.iinfo(value.dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(value.dtype)
    if np.dtype(value.dtype).kind in "iub":
        return np.asarray(rng.integers(0, 2, shape), value.dtype)
    return np.asarray(rng.standard_normal(shape) * scale, value.dtype)  # of no axes, too, which numpy makes a number


def alone(arrays: Mapping[str, np.ndarray]) -> Any:
    """The only array, or all by name: what a network with one input takes, and one with several."""
    return next(iter(arrays.values())) if len(arrays) == 1 else dict(arrays)


def listed(outputs: Any) -> list[np.ndarray]:
    """Outputs in order, whether a network has one or several."""
    return list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]
