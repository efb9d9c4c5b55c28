"""What a bundle computes and how fast, where it will run: compared with ONNX Runtime, raced with dense engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from kerf import files
from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend import clean, sizes
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.measure import bench
from kerf.deploy.measure.samples import alone, draw
from kerf.deploy.measure.verify import ALLOWED, Verified, dense_error, reference_session, verify
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.plain import plain
from kerf.deploy.report.schema import Latency, Speedup
from kerf.deploy.runtime.session import load
from kerf.errors import BadInput, Mismatch, Unsupported
from kerf.tune.places import Place
from kerf.tune.progress import Say
from kerf.tune.remote import RemoteSession, Tracker
from kerf.tune.request import Request

USUAL = (64, 224, 32, 640, 16, 1)  # sizes of images, and lengths
DENSE_DIFFER = 1e-3  # relative: what dense engines differ by among themselves, and may

Run = Callable[[Any], Any]


class Proof(TypedDict):
    """What of it goes into a report: errors are the largest of any output, against ONNX Runtime."""

    verified: bool
    max_abs_error: float
    max_relative_error: float
    latency_ms: dict[str, Latency]
    speedup: Speedup | None


def of(folder: Path, place: Place, plans: Sequence[tuple[Network, Built | None]], request: Request, say: Say) -> Proof:
    """Of the bundle in ``folder``: every plan is verified, the first is raced. Raises Mismatch, naming the layers that
    are wrong on their own.
    """
    network, built = plans[0]
    free = open_sizes(network)
    x = alone(draw(network.inputs, np.random.default_rng(0), free=free))
    if isinstance(place, Tracker):  # the dense engines are not there to be raced
        with RemoteSession(folder, place, request.threads) as remote:
            return proof(check(remote.run, place, network, built, request), [remote.measure(x)])
    run = load(folder, request.threads).run
    checked, *_ = [check(run, place, each, code, request, free) for each, code in plans]
    return proof(checked, race(run, place, x, network, request, say, checked["max_relative_error"]))


def proof(checked: Verified, raced: Sequence[bench.Measurement]) -> Proof:
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


def check(run: Run, place: Place, network: Network, built: Built | None, request: Request, free: int = 1) -> Verified:
    """As kerf.deploy.measure.verify. Raises Mismatch, naming the layers that are wrong on their own."""
    try:
        precision = "f16" if clean.is_widened(network.graph.original) else request.precision
        dense = any(piece.engine != KERF for piece in network.run_by)
        return verify(run, network.path, network.inputs, precision=precision, free=free, dense=dense)
    except Mismatch as error:
        if not place.races_networks or built is None:
            raise
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error


def race(
    run: Run, place: Place, x: Any, network: Network, request: Request, say: Say, error: float
) -> list[bench.Measurement]:
    """Kerf first, then the dense engines, which get the same graph with the same fixed shapes; those that refuse it, or
    compute something else, are left out, and it is said.

    ``error``: kerf's largest, relative, as verified. On a GPU images come from the host, and results go back to it.
    """
    kerf, dense = bench.Engine("kerf", run), []
    feed = x if isinstance(x, Mapping) else {network.inputs[0].name: x}
    allowed = max(DENSE_DIFFER, ALLOWED[request.precision], 2 * error, 2 * dense_error(network.path, feed))
    with tempfile.TemporaryDirectory(prefix="kerf-race-") as temporary:
        path = Path(temporary) / "dense.onnx"
        files.write(path, onnx_piece.model(network.graph, plain(network, "").pieces[0]).SerializeToString())
        for name in (n for n in request.against if n in place.dense_engines):
            try:
                engine = place.dense_engines[name](path, request.threads)
                bench.refuse_different_outputs([kerf, engine], x, allowed)
                dense.append(engine)
            except ImportError as missing:
                say(f"{missing}; raced without {name}")
            except (Unsupported, BadInput, RuntimeError) as refusal:
                say(f"{' '.join(str(refusal).split())}; raced without {name}")
        return bench.interleave([kerf, *dense], x, seconds=request.seconds)
