"""What a caller gives a network, as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerf.deploy.runtime.manifest import Tensor
from kerf.errors import BadInput

Given = np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]


def feed(given: Given, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """``given``: the array of an only input, arrays by name, or arrays in the file's order. Raises BadInput for missing
    and unknown names, and for arrays of another type or of sizes that the file fixes otherwise.
    """
    arrays = {name: plain(array) for name, array in by_name(given, inputs).items()}
    for name, array in arrays.items():
        expected = inputs[name]
        if not fits(array, expected):
            came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            what = "input" if len(inputs) == 1 else f"input {name!r}"
            raise BadInput(f"{what} is {came}; this bundle takes a numpy array {said(expected)}")
    return arrays


def plain(array: Any) -> Any:
    """A subclass of numpy's array as that array, bytes in this machine's order; anything else as it is.

    Raises BadInput for a masked array: what is to stand where it is masked, nobody says.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise BadInput("a masked array came; fill it: array.filled(value)")
    if not isinstance(array, np.ndarray):
        return array
    array = np.asarray(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def by_name(given: Given, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        absent, unknown = [n for n in inputs if n not in given], [str(n) for n in given if n not in inputs]
        if absent or unknown:
            wrong = f"no {', '.join(map(repr, absent))}" if absent else f"{', '.join(map(repr, unknown))} given"
            raise BadInput(f"{wrong}; the inputs of this bundle are {listed(inputs)}")
        return {name: given[name] for name in inputs}
    if len(inputs) == 1 and not isinstance(given, list | tuple):
        return dict.fromkeys(inputs, given)
    if not isinstance(given, list | tuple) or len(given) != len(inputs):
        came = f"{len(given)} arrays" if isinstance(given, list | tuple) else "one array"
        raise BadInput(f"{came} given; this bundle takes {listed(inputs)}: run({{name: array, …}})")
    return dict(zip(inputs, given))


def fits(array: object, expected: Tensor) -> bool:
    """A list of arrays, for a sequence, and None, for an optional tensor, are for the engine to judge."""
    if not isinstance(array, np.ndarray):
        return expected["dtype"] == "object" and expected["shape"] is None and isinstance(array, list | None)
    same = array.dtype.kind in "OSU" if expected["dtype"] == "object" else str(array.dtype) == expected["dtype"]
    sizes = expected["shape"]
    return same and (
        sizes is None
        or (len(sizes) == array.ndim and all(size in (None, found) for size, found in zip(sizes, array.shape)))
    )


def said(tensor: Tensor) -> str:
    """Type and sizes, as messages give them."""
    kind = "of strings" if tensor["dtype"] == "object" else tensor["dtype"]
    if tensor["shape"] is None:
        return kind
    sizes = tuple("?" if size is None else size for size in tensor["shape"])
    return f"{kind} {sizes}".replace("'", "")


def listed(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name!r} {said(tensor)}" for name, tensor in inputs.items())
