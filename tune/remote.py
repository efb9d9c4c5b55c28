"""The devices that a TVM RPC tracker knows under a key: a place for candidates, and for whole bundles."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax, rpc
from tvm.target import Target

from kerf.deploy.measure.bench import Measurement
from kerf.deploy.measure.environment import provenance
from kerf.deploy.runtime import bundle
from kerf.errors import BadInput, DeviceLost
from kerf.tune.places import MakeEngine, OnPlanes

PATIENCE = 30  # seconds to wait for a tracker or a free device
REPEATS, REPEAT_MS = 30, 20


@dataclass(frozen=True)
class Tracker(OnPlanes):
    """The devices registered under ``key`` at a tracker: python -m tvm.exec.rpc_tracker, and rpc_server on each.

    A key stands for one type of device: records say "rpc:KEY" where they would name the CPU.
    """

    host: str
    port: int
    key: str
    patience: ClassVar[int] = PATIENCE
    dense_engines: ClassVar[Mapping[str, MakeEngine]] = {}
    races_networks: ClassVar[bool] = False

    @classmethod
    def parse(cls, text: str, key: str) -> Tracker:
        """HOST:PORT. Raises ValueError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit():
            raise BadInput(f"--rpc {text!r}: expected HOST:PORT of a TVM RPC tracker")
        if not key:
            raise BadInput(f"--rpc {text}: which devices? Give the key they are registered under with --rpc_key")
        return cls(host, int(port), key)

    def devices(self) -> int:
        """Registered under the key, busy or free. Raises DeviceLost when the tracker does not answer."""
        servers = self._ask(lambda tracker: tracker.summary()["server_info"])
        return sum(info["key"] == f"server:{self.key}" for info in servers)

    def peak(self, target: Target, threads: int, integers: bool = False) -> float | None:
        return None

    def provenance(self) -> dict[str, str]:
        return {**provenance(), "cpu": f"rpc:{self.key}"}

    @contextmanager
    def session(self, threads: int) -> Iterator[rpc.RPCSession | None]:
        session = self._ask(lambda tracker: tracker.request(self.key))
        try:
            session.get_function("runtime.config_threadpool")(1, threads)
            yield session
        finally:
            # not left to the last reference: after a retry TVM's request is a cycle that keeps the session, and with it
            # the device, for which this process would wait in vain
            with suppress(RuntimeError):  # the device has gone
                session.get_function("CloseRPCConnection")()

    def device(self, session: rpc.RPCSession | None) -> tvm.runtime.Device:
        return _open(session).cpu()

    def load(self, session: rpc.RPCSession | None, path: str) -> tvm.runtime.Module:
        session = _open(session)
        # under a name of its own: a file that is loaded already must not be written over
        name = path.strip(os.sep).replace(os.sep, ".")
        session.upload(path, name)
        return session.load_module(name)

    def _ask(self, question: Callable[[rpc.TrackerSession], Any]) -> Any:
        """The answer, within PATIENCE: TVM itself would wait for ever, and knocks for a minute where nobody listens."""
        answer: list = []
        errors: list[Exception] = []

        def ask() -> None:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                answer.append(question(rpc.connect_tracker(self.host, self.port)))
            except Exception as error:
                errors.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(PATIENCE)
        if answer:
            return answer[0]
        reason = " ".join(str(errors[0]).split()) if errors else f"no device is free within {PATIENCE} s"
        raise DeviceLost(f"tracker {self.host}:{self.port}, key {self.key}: {reason}")


def _open(session: rpc.RPCSession | None) -> rpc.RPCSession:
    """What ``Tracker.session`` gave."""
    assert session is not None, "devices of a tracker are reached through a session"
    return session


class RemoteSession(AbstractContextManager):
    """A bundle on a device, as kerf.deploy.runtime.session.Session on this machine; held until the block ends.

    Raises DeviceLost when none becomes free.
    """

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
