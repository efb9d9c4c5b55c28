"""A bundle on a device of a tracker: what kerf.deploy.runtime.session.Session is on this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from kerf.deploy.measure.bench import Measurement
from kerf.deploy.runtime import bundle
from kerf.tune.places import Tracker

REPEATS, REPEAT_MS = 30, 20


class RemoteSession(AbstractContextManager):
    """Holds the device until the block ends. Raises DeviceLost when none becomes free."""

    def __init__(self, folder: Path, place: Tracker, threads: int):
        with ExitStack() as opened:
            session = opened.enter_context(place.session(threads))
            self._device = place.device(session)
            self._machine = relax.VirtualMachine(place.load(session, str(folder / "library.so")), self._device)
            self._weights = [tvm.runtime.tensor(w, self._device) for w in bundle.read_weights(folder)]
            self._opened = opened.pop_all()

    def __exit__(self, *error) -> None:
        self._opened.close()

    def run(self, x: np.ndarray) -> np.ndarray:
        self._machine.set_input("main", tvm.runtime.tensor(x, self._device), *self._weights)
        self._machine.invoke_stateful("main")
        return self._machine.get_outputs("main").numpy()

    def measure(self, x: np.ndarray) -> Measurement:
        """Latency on the device itself, without the way there and back."""
        self.run(x)
        timer = self._machine.time_evaluator(
            "invoke_stateful", self._device, number=1, repeat=REPEATS, min_repeat_ms=REPEAT_MS
        )
        return Measurement("kerf", tuple(1e3 * s for s in timer("main").results), 1)
