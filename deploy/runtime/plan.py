"""The pieces of a network, one after the other, for inputs of fixed sizes: kerf's compiled functions, and models that a
dense engine runs.

Tensors between pieces lie in memory that is allocated once, when the plan is made, and every piece reads and writes
there; what the caller gets is new on every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tvm_ffi

from kerf.deploy.runtime import callers, dense_engine
from kerf.deploy.runtime.dense_engine import Model
from kerf.deploy.runtime.manifest import OnnxStep, Step, Tensor, is_own
from kerf.deploy.runtime.own_piece import Arrays, OwnPiece, aligned

CPU, POOLED = 1, 2  # DLPack's device type, the virtual machine's allocator


class Plan:
    """Not safe for calls from several threads at once."""

    def __init__(
        self,
        steps: Sequence[Step],
        values: Mapping[str, Tensor],
        results: Sequence[str],
        library: tvm_ffi.Module | None,
        weights: Sequence[Any],
        models: Mapping[str, Model],
        threads: int,
        shared: bool,
    ):
        """``values``: type and shape of all tensors that pieces exchange, results and inputs included; without a shape
        where sizes are known only when the network runs. ``library``: the module of kerf's functions (of
        Built.runnable()); ``weights``: tensors of TVM's, aligned; ``models``: those of dense engines, by the
        step's "file". ``shared``: the library's loops are shared among threads.
        """
        self._shared = shared and library is not None
        self.threads, self._results, self._values = threads, list(results), values
        self.fixed: Arrays = {}  # tensors that always lie in the same place
        self._machine = library["vm_load_executable"]() if library is not None else None
        if self._machine is not None:
            self._machine["vm_initialization"](CPU, 0, POOLED)
        self.calls: list[Callable[[Arrays], None]] = []
        self._alone = self._whole(steps, models)
        for step in steps:
            if is_own(step):
                made = partial(OwnPiece, step, self._machine, weights, values, self.fixed, results)
                piece = callers.call(made, threads) if self._shared else made()
                self.fixed |= piece.memory
                self.calls.append(piece)
            elif self._alone is None:
                self.calls.append(self._other(step, models[step["file"]]))

    def _whole(self, steps: Sequence[Step], models: Mapping[str, Model]) -> dense_engine.Call | None:
        """A dense engine that runs everything, and gives the results in their order."""
        if len(steps) != 1 or is_own(steps[0]):
            return None
        return dense_engine.open_network(steps[0]["engine"], models[steps[0]["file"]], self.threads)

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """The results, by name, in their order; ``feed``: arrays of the inputs' types and sizes."""
        if self._alone is not None:
            found = self._alone(feed, {})
            return found if len(found) == 1 else {name: found[name] for name in self._results}
        found = dict(feed)
        if self._shared:
            callers.call(partial(self._call, found), self.threads)
        else:
            self._call(found)
        return {name: feed[name].copy() if name in feed else found[name] for name in self._results}

    def _call(self, found: Arrays) -> None:
        for call in self.calls:
            call(found)

    def _other(self, step: OnnxStep, model: Model) -> Callable[[Arrays], None]:
        sized = [n for n in step["outputs"] if self._values[n]["shape"] is not None]
        for name in sized:
            if name not in self._results:
                self.fixed[name] = aligned(np.zeros(*_array(self._values[name])))
        new = {n: _array(self._values[n]) for n in sized if n in self._results}
        free = [n for n in step["outputs"] if n not in sized]
        fixed_in, fixed_out = ({n: self.fixed[n] for n in step[k] if n in self.fixed} for k in ("inputs", "outputs"))
        run = dense_engine.open_piece(step["engine"], model, fixed_in, fixed_out, free, self.threads)
        moving = [n for n in step["inputs"] if n not in fixed_in]

        def call(found: Arrays) -> None:
            outputs = {n: np.empty(*array) for n, array in new.items()}
            found.update(run({n: found[n] for n in moving}, outputs))
            found.update(outputs)

        return call


def _array(value: Tensor) -> tuple[list[int], str]:
    assert value["shape"] is not None  # the caller's condition
    return value["shape"], value["dtype"]
