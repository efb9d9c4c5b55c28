"""A call of one of kerf's compiled functions: numpy arrays in, numpy arrays out, without copies where memory allows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tvm_ffi

from kerf.deploy.runtime.manifest import KerfStep, Tensor

ALIGNED = 64  # bytes that TVM expects tensors to start on

Arrays = dict[str, np.ndarray]


class OwnPiece:
    """``machine``: the virtual machine of the compiled network; ``fixed``: tensors that always lie in the same place.

    After construction ``memory`` holds the outputs that do so, too; of the others, those in ``results`` are new arrays
    on every call, and views of what the caller gave move with it.
    """

    def __init__(
        self,
        step: KerfStep,
        machine: Any,
        weights: Sequence[Any],
        values: Mapping[str, Tensor],
        fixed: Mapping[str, np.ndarray],
        results: Collection[str],
    ):
        suffix = step["function"]
        self._run = machine[f"run{suffix}"]
        self._kept = [*(weights[i] for i in step["weights"]), *machine[f"buffers{suffix}"]()]
        self._inputs = [Input(name, values[name], fixed.get(name)) for name in step["inputs"]]
        self._outputs = step["outputs"]
        # one call shows where outputs lie
        found = self._call({i.name: i.room for i in self._inputs})
        moving = [i.room for i in self._inputs if not i.fixed]
        views = {n for n, array in found.items() if any(np.shares_memory(array, room) for room in moving)}
        self.memory = {n: array for n, array in found.items() if n not in views and n not in results}
        self._given = [n for n in self._outputs if n not in self.memory]
        self._copied = [n for n in self._given if n in views and n in results]

    def __call__(self, found: Arrays) -> None:
        """Adds the outputs that are not in ``memory``."""
        new = self._call(found)
        for name in self._given:
            found[name] = new[name]
        for name in self._copied:
            found[name] = new[name].copy()

    def _call(self, found: Arrays) -> Arrays:
        result = self._run(*[i.of(found) for i in self._inputs], *self._kept)
        tensors = (result,) if len(self._outputs) == 1 else result
        return {name: np.from_dlpack(tensor) for name, tensor in zip(self._outputs, tensors)}


class Input:
    """A tensor that one of kerf's functions takes."""

    def __init__(self, name: str, value: Tensor, fixed: np.ndarray | None):
        self.name, self.fixed = name, fixed is not None
        self.room = np.zeros(value["shape"] or (), value["dtype"]) if fixed is None else fixed
        if not _fits(self.room):
            self.room = aligned(self.room)
        self._from = None if fixed is self.room else fixed  # in a place that TVM does not take
        self._tensor = tvm_ffi.from_dlpack(self.room)

    def of(self, found: Arrays) -> Any:
        """As TVM takes it: 64-byte aligned, writable memory as it is; others are copied, to memory that is kept: fresh
        pages for every image cost more than its pixels.
        """
        if self.fixed:
            if self._from is not None:
                np.copyto(self.room, self._from)
            return self._tensor
        x = found[self.name]
        if _fits(x):
            return tvm_ffi.from_dlpack(x)
        np.copyto(self.room, x)
        return self._tensor


def _fits(x: np.ndarray) -> bool:
    return x.flags.c_contiguous and x.flags.writeable and x.ctypes.data % ALIGNED == 0


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts where TVM wants it."""
    room = np.empty(array.nbytes + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
