"""What a bundle computes and how fast, where it will run: compared with ONNX Runtime, raced with dense engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend import clean, qdq, sizes
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.measure import bench
from kerf.deploy.measure.rivals import DENSE_DIFFER, Starting, race
from kerf.deploy.measure.samples import alone, draw
from kerf.deploy.measure.verify import ALLOWED, Verified, reference_session, verify
from kerf.deploy.report import claims
from kerf.deploy.report.schema import Latency, QuantisedReport, Report, Speedup
from kerf.deploy.runtime.session import load
from kerf.errors import Mismatch
from kerf.tune.places import Place
from kerf.tune.progress import Say
from kerf.tune.remote import RemoteSession, Tracker
from kerf.tune.request import Request

USUAL = (64, 224, 32, 640, 16, 1)  # sizes of images, and lengths

Run = Callable[[Any], Any]


class Proof(TypedDict):
    """What of it goes into a report: errors are the largest of any output, against ONNX Runtime."""

    verified: bool
    max_abs_error: float
    max_relative_error: float
    latency_ms: dict[str, Latency]
    speedup: Speedup | None
    quantised: QuantisedReport | None  # None of a network of floats


def of(
    folder: Path,
    place: Place,
    plans: Sequence[tuple[Network, Built | None]],
    request: Request,
    say: Say,
    f32: Path | None = None,
    instead: bool = False,
) -> Proof:
    """Of the bundle in ``folder``: every plan is verified, the first is raced. ``f32``: what it was quantised from;
    ``instead``: a dense engine takes kerf's place, and its integers may not saturate.

    Raises Mismatch, naming the layers that are wrong on their own.
    """
    network, built = plans[0]
    free, integers = open_sizes(network), qdq.is_quantised(network.graph.original)
    x = alone(draw(network.inputs, np.random.default_rng(0), free=free))
    if isinstance(place, Tracker):  # the dense engines are not there to be raced
        with RemoteSession(folder, place, request.threads) as remote:
            checked = check(remote.run, place, network, built, request)
            return proof(checked, [remote.measure(x)], {"difference": None} if integers else None)
    run = load(folder, request.threads).run
    checked, *_ = [
        check(
            load(folder, request.threads, targets.describe(code.target)).run if len(plans) > 1 and code else run,
            place,
            each,
            code,
            request,
            free,
            instead,
        )
        for each, code in plans
        if not code or not targets.foreign(code.target)
    ]
    starting = Starting(
        {name: place.dense_engines[name] for name in request.against if name in place.dense_engines},
        request.threads,
        max(DENSE_DIFFER, ALLOWED[request.precision], 2 * checked["max_relative_error"]),
        f32,
        request.shapes[0] if request.shapes else {},
        request.batch,
    )
    raced = race(bench.Engine("kerf", run), starting, x, network, request.seconds, say)
    return proof(checked, raced.measured, {"difference": raced.difference} if integers else None)


def proof(checked: Verified, raced: Sequence[bench.Measurement], quantised: QuantisedReport | None) -> Proof:
    return {
        "verified": checked["verified"],
        "max_abs_error": checked["max_abs_error"],
        "max_relative_error": checked["max_relative_error"],
        "latency_ms": {
            m.engine: {"median": m.median, "p10": m.p10, "p90": m.p90, "samples": list(m.samples)} for m in raced
        },
        "speedup": speedup(*raced) if len(raced) > 1 else None,
        "quantised": quantised,
    }


def alike(report: Report) -> Speedup | None:
    """Over the fastest dense engine that computes the same network: for one of integers, on the same integers."""
    raced = {n: bench.Measurement(n, tuple(samples_of(m)), 1) for n, m in report["latency_ms"].items()}
    kerf = raced.pop("kerf")
    same = [m for m in raced.values() if not report.get("quantised") or m.engine.endswith(f" {claims.INT8}")]
    return speedup(kerf, *same) if same else None


def samples_of(latency: Latency) -> list[float]:
    """Of a race that was just run: none were thinned out."""
    samples = latency["samples"]
    assert isinstance(samples, list)
    return samples


def speedup(kerf: bench.Measurement, *dense: bench.Measurement) -> Speedup:
    found = bench.speedup(kerf, dense)
    ratio, interval = found["median"], found["ci95"]
    return {"against": found["against"], "median": ratio, "ci95": interval, "conclusive": found["conclusive"]}


def open_sizes(network: Network) -> int:
    """What sizes that the file leaves open are for a proof: a number with which ONNX Runtime runs the network.

    Raises BadInput where none of the usual ones does.
    """
    if all(v.shape is not None and None not in v.shape for v in network.inputs):
        return 1
    session = reference_session(str(network.path))
    for size in USUAL:
        feed = draw(network.inputs, np.random.default_rng(0), free=size)
        with suppress(Exception):  # ONNX Runtime's errors derive from Exception directly
            session.run(None, feed)
            return size
    sizes.refuse_free(network.path, network.graph.original)
    return 1


def check(
    run: Run,
    place: Place,
    network: Network,
    built: Built | None,
    request: Request,
    free: int = 1,
    instead: bool = False,
) -> Verified:
    """As kerf.deploy.measure.verify. Raises Mismatch, naming the layers that are wrong on their own."""
    try:
        precision = "f16" if clean.is_widened(network.graph.original) else request.precision
        dense = any(piece.engine != KERF for piece in network.run_by) and not instead
        return verify(run, network.path, network.inputs, precision=precision, free=free, dense=dense)
    except Mismatch as error:
        if not place.races_networks or built is None:
            raise
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error
