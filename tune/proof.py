"""What a bundle computes and how fast, where it will run: compared with ONNX Runtime, raced with dense engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend import clean
from kerf.deploy.frontend.network import Network
from kerf.deploy.measure import bench
from kerf.deploy.measure.verify import ALLOWED, Verified, verify
from kerf.deploy.report.schema import Latency, Speedup
from kerf.deploy.runtime.session import load
from kerf.errors import BadInput, Mismatch
from kerf.tune.places import Place
from kerf.tune.progress import Say
from kerf.tune.remote import RemoteSession, Tracker
from kerf.tune.request import Request

DENSE_DIFFER = 1e-3  # relative: what dense engines differ by among themselves, and may

Run = Callable[[np.ndarray], np.ndarray]


class Proof(TypedDict):
    """What of it goes into a report: errors are the largest of any output, against ONNX Runtime."""

    verified: bool
    max_abs_error: float
    max_relative_error: float
    latency_ms: dict[str, Latency]
    speedup: Speedup | None


def of(folder: Path, place: Place, network: Network, built: Built, request: Request, say: Say) -> Proof:
    """Of the bundle in ``folder``. Raises Mismatch, naming the layers that are wrong on their own."""
    x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
    if isinstance(place, Tracker):  # the dense engines are not there to be raced
        with RemoteSession(folder, place, request.threads) as remote:
            checked, raced = check(remote.run, place, network, built, request), [remote.measure(x)]
    else:
        session = load(folder, request.threads)
        checked, raced = check(session.run, place, network, built, request), race(session.run, place, x, request, say)
    return {
        "verified": checked["verified"],
        "max_abs_error": checked["max_abs_error"],
        "max_relative_error": checked["max_relative_error"],
        "latency_ms": {
            m.engine: {"median": m.median, "p10": m.p10, "p90": m.p90, "samples": list(m.samples)} for m in raced
        },
        "speedup": speedup(*raced) if len(raced) > 1 else None,
    }


def speedup(kerf: bench.Measurement, *dense: bench.Measurement) -> Speedup:
    found = bench.speedup(kerf, dense)
    ratio, interval = found["median"], found["ci95"]
    return {"against": found["against"], "median": ratio, "ci95": interval, "conclusive": found["conclusive"]}


def check(run: Run, place: Place, network: Network, built: Built, request: Request) -> Verified:
    """As kerf.deploy.measure.verify. Raises Mismatch, naming the layers that are wrong on their own."""
    try:
        return verify(run, network.path, network.input_shape, precision=request.precision)
    except Mismatch as error:
        if not place.races_networks:
            raise
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error


def race(run: Run, place: Place, x: np.ndarray, request: Request, say: Say) -> list[bench.Measurement]:
    """Kerf first, then the dense engines, which get the same file with the same fixed shapes.

    On a GPU the image comes from the host and the result goes back to it.
    """
    engines = [bench.Engine("kerf", run)]
    with tempfile.TemporaryDirectory(prefix="kerf-race-") as temporary:
        dense = Path(temporary) / "dense.onnx"
        clean.write(request.path, dense, batch=request.batch)
        for name in (n for n in request.against if n in place.dense_engines):
            try:
                engines.append(place.dense_engines[name](dense, request.threads))
            except ImportError as error:
                say(f"{error}; raced without {name}")
            except RuntimeError as error:
                raise BadInput(f"{name} cannot run {request.path}: {error}; leave it out of --against") from error
        allowed = max(DENSE_DIFFER, ALLOWED[request.precision])
        return bench.race(engines, x, seconds=request.seconds, tolerance=allowed)
