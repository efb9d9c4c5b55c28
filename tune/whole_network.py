"""The last word on a tuning is the whole network's: layers measured alone do not know what neighbours leave in the
caches. So the tuned network races the untuned one once, and what comes out is a record like any other.
"""

from __future__ import annotations

import hashlib
import json
from typing import cast

import numpy as np
from tvm.target import Target

from kerf.deploy.compiler.build import Built, Plan, compiled, plan
from kerf.deploy.compiler.targets import describe
from kerf.deploy.frontend.network import Network
from kerf.deploy.measure import bench
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook, faster, race_name
from kerf.deploy.measure.samples import alone, draw
from kerf.deploy.plans import steps
from kerf.kernels.config import Config

KERNEL = "whole network"
SECONDS = 4.0


def better(network: Network, target: Target, threads: int, book: RecordBook) -> tuple[Built, str]:
    """The network built with the records, or without where that is faster beyond noise; a line that says which."""
    tuned, untuned = plan(network, target, book), plan(network, target, RecordBook())
    if tuned == untuned:
        return compiled(network, target, tuned), "nothing that was measured beats the untuned network's choices"
    names, built = _problem(tuned, untuned), {}
    known = _known(names, target, book)
    if not known:
        built = {name: compiled(network, target, p) for name, p in (("tuned", tuned), ("untuned", untuned))}
        known = _race(network, built, names, target, threads, book)
    mine, other = known
    ratio = float(np.median(other.samples / mine.samples))
    if faster(other, mine):
        said = f"as a whole the tuned network is slower ({ratio:.3f}x): built untuned"
        return built.get("untuned") or compiled(network, target, untuned), said
    return built.get("tuned") or compiled(network, target, tuned), f"as a whole {ratio:.3f}x of the untuned network"


def _problem(tuned: Plan, untuned: Plan) -> str:
    """A name for the two networks: their layers and what computes each."""
    layers = [[name, p.choices[name].key] for p in (tuned, untuned) for name in p.choices]
    return json.dumps({"network": hashlib.sha256(json.dumps(layers).encode()).hexdigest()})


def _known(names: str, target: Target, book: RecordBook) -> tuple[Record, Record] | None:
    found = book.of(names, describe(target), provenance())
    return (found[-2], found[-1]) if len(found) > 1 else None


def _race(
    network: Network, built: dict[str, Built], names: str, target: Target, threads: int, book: RecordBook
) -> tuple[Record, Record]:
    """A record each, of the same rounds."""
    race = race_name()
    engines = [bench.Engine(name, steps.session(network, b, threads).run) for name, b in built.items()]
    x = alone(draw(network.inputs, np.random.default_rng(0)))
    tuned, untuned = (
        Record(
            problem=names,
            kernel=KERNEL,
            config=cast(Config, {"tuned": int(m.engine == "tuned")}),  # of no kernel
            target=describe(target),
            latency_us=tuple(1e3 * ms for ms in m.samples),
            versions=provenance(),
            race=race,
        )
        for m in bench.race(engines, x, seconds=SECONDS)
    )
    book.add(tuned, untuned)
    return tuned, untuned
