"""The last word on a tuning is the whole network's: layers measured alone do not know what neighbours leave in the
caches. So the tuned network races the untuned one once, and what comes out is a record like any other.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from tvm.target import Target

from deploy import bench, runtime
from deploy.build import Built, build
from deploy.convert import Network
from deploy.environment import provenance
from deploy.record import Record, RecordBook, faster
from deploy.targets import describe

KERNEL = "whole network"
SECONDS = 4.0


def better(network: Network, target: Target, threads: int, book: RecordBook) -> tuple[Built, str]:
    """The network built with the records, or without where that is faster beyond noise; a line that says which."""
    tuned, untuned = build(network, target, book), build(network, target, RecordBook())
    if tuned.choices == untuned.choices:
        return tuned, "nothing that was measured beats the untuned network's choices"
    verdict = _known(tuned, untuned, target, book) or _race(network, tuned, untuned, target, threads, book)
    mine, other = verdict
    ratio = float(np.median(other.samples / mine.samples))
    if faster(other, mine):
        return untuned, f"as a whole the tuned network is slower ({ratio:.3f}x): built untuned"
    return tuned, f"as a whole {ratio:.3f}x of the untuned network"


def _problem(tuned: Built, untuned: Built) -> str:
    """A name for the two networks: their layers and what computes each."""
    layers = [[name, built.choices[name].key] for built in (tuned, untuned) for name in built.choices]
    return json.dumps({"network": hashlib.sha256(json.dumps(layers).encode()).hexdigest()})


def _known(tuned: Built, untuned: Built, target: Target, book: RecordBook) -> tuple[Record, Record] | None:
    found = book.of(_problem(tuned, untuned), describe(target), provenance())
    return (found[-2], found[-1]) if len(found) > 1 else None


def _race(network, tuned, untuned, target, threads, book) -> tuple[Record, Record]:
    engines = [
        bench.Engine(
            name,
            runtime.Session(
                built.executable.jit(), list(built.packed.values()), {"input": network.input_shape}, threads
            ).run,
        )
        for name, built in (("tuned", tuned), ("untuned", untuned))
    ]
    x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
    race = hashlib.sha256(np.random.default_rng().bytes(16)).hexdigest()[:12]
    records = tuple(
        Record(
            problem=_problem(tuned, untuned),
            kernel=KERNEL,
            config={"tuned": int(m.engine == "tuned")},
            target=describe(target),
            latency_us=tuple(1e3 * ms for ms in m.samples),
            versions=provenance(),
            race=race,
        )
        for m in bench.race(engines, x, seconds=SECONDS)
    )
    book.add(*records)
    return records
