"""What a bundle computes and how fast, where it will run: compared with ONNX Runtime, raced with dense engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend.network import Network
from kerf.deploy.frontend.onnx_graph import write_fixed
from kerf.deploy.measure import bench
from kerf.deploy.measure.verify import ALLOWED, verify
from kerf.deploy.report.schema import Latency, Speedup
from kerf.deploy.runtime.gpu_session import GpuSession
from kerf.deploy.runtime.session import Session, load
from kerf.errors import BadInput, Mismatch
from kerf.tune.places import Place, Tracker
from kerf.tune.remote import RemoteSession
from kerf.tune.request import Request

DENSE_DIFFER = 1e-3  # relative: what dense engines differ by among themselves, and may

Say = Callable[[str], object]


class Check(TypedDict):
    """Against ONNX Runtime, over the largest errors of any output."""

    verified: bool
    max_abs_error: float
    max_relative_error: float


class Race(TypedDict):
    latency_ms: dict[str, Latency]
    speedup: Speedup | None


class Proof(Check, Race):
    """What of it goes into a report."""


def of(folder: Path, place: Place, network: Network, built: Built, request: Request, say: Say) -> Proof:
    """Of the bundle in ``folder``.

    Raises Mismatch, naming the layers that are wrong on their own.
    """
    x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
    if isinstance(place, Tracker):  # the dense engines are not there to be raced
        with RemoteSession(folder, place, request.threads) as remote:
            verified = verify(remote.run, network.path, network.input_shape)
            return {**verified, "latency_ms": {"kerf": remote.measure(x).to_json()}, "speedup": None}
    session = load(folder, request.threads)
    return {**check(session, place, network, built, request), **race(session, place, x, request, say)}


def check(session: Session | GpuSession, place: Place, network: Network, built: Built, request: Request) -> Check:
    """Raises Mismatch, naming the layers that are wrong on their own."""
    try:
        return verify(session.run, network.path, network.input_shape, precision=request.precision)
    except Mismatch as error:
        if not place.races_networks:
            raise
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error


def race(session: Session | GpuSession, place: Place, x: np.ndarray, request: Request, say: Say) -> Race:
    """Kerf and the dense engines, which get the same file with the same fixed shapes.

    On a GPU the image comes from the host and the result goes back to it.
    """
    engines = [bench.Engine("kerf", session.run)]
    with tempfile.TemporaryDirectory(prefix="kerf-race-") as temporary:
        dense = Path(temporary) / "dense.onnx"
        write_fixed(request.path, request.batch, dense)
        for name in (n for n in request.against if n in place.dense_engines):
            try:
                engines.append(place.dense_engines[name](dense, request.threads))
            except ImportError as error:
                say(f"{error}; raced without {name}")
            except RuntimeError as error:
                raise BadInput(f"{name} cannot run {request.path}: {error}; leave it out of --against") from error
        allowed = max(DENSE_DIFFER, ALLOWED[request.precision])
        measured = bench.race(engines, x, seconds=request.seconds, tolerance=allowed)
    return {
        "latency_ms": {m.engine: m.to_json() for m in measured},
        "speedup": bench.speedup(measured[0], measured[1:]) if len(measured) > 1 else None,
    }
