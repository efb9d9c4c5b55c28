"""Which pieces of a network are kerf's: first whatever it has functions for, then what is faster so, as measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from tvm.target import Target

from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend import refusals, sizes
from kerf.deploy.frontend.network import KERF, Network, Piece
from kerf.deploy.frontend.operators import table
from kerf.deploy.measure.samples import draw
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.cut import cut, is_layer, joined
from kerf.deploy.partition.plain import plain
from kerf.deploy.plans import steps
from kerf.deploy.runtime.dense_engine import open_piece
from kerf.errors import BadInput, Unsupported
from kerf.kernels.backends import backend_of
from kerf.kernels.kernel import candidates

OTHER = "onnxruntime"  # runs what kerf does not
ROUNDS, FEWEST, SECONDS = 20, 5, 0.3  # per piece
CHANGE_US = 15.0  # what a change of engines costs


def whole(network: Network) -> Network:
    """The network as one piece of kerf's. Raises BadInput where it has no layer with a kernel."""
    if not network.layers:
        raise refusals.nothing(network.path, network.graph)
    return network


def able(network: Network, target: Target, say: Callable[[str], object]) -> Network:
    """The network cut into pieces by what kerf has functions for; other pieces are ONNX Runtime's, all where kerf has
    none, and it is said why.
    """
    kernels = backend_of(target).kernels

    def takes(node: onnx.NodeProto) -> bool:
        if is_layer(node):
            return any(True for _ in candidates(kernels, network.layers[node.name].problem, target))
        return table.reason(network.graph, node) is None

    found = cut(network.graph, takes, OTHER)
    if reason := obstacle(network, found):
        say(f"kerf computes nothing of this network: {reason}")
        return plain(network, OTHER)
    return replace(network, pieces=found)


def obstacle(network: Network, found: Sequence[Piece]) -> str | None:
    """Why the network cannot run in these pieces; None where it can."""
    try:
        sizes.refuse_free(network.path, network.graph.original)
    except BadInput as error:
        return str(error).removeprefix(f"{network.path}: ")
    if not any(piece.engine == KERF for piece in found):
        return str(refusals.nothing(network.path, network.graph)).removeprefix(f"{network.path}: ")
    if strange := onnx_piece.untyped(network.graph, found):
        return f"{strange!r}, which its pieces would exchange, is no tensor of numbers"
    return None


@dataclass(frozen=True)
class Weighed:
    """A piece's microseconds, by engine."""

    piece: Piece
    us: dict[str, float]


def weigh(network: Network, built: Built, threads: int) -> list[Weighed]:
    """Every piece in its place, behind the pieces before it; kerf's in ONNX Runtime, too, where it runs them."""
    plan = steps.session(network, built, threads).plan(0)
    values = draw(network.inputs, np.random.default_rng(0))
    found = []
    for piece, call in zip(network.run_by, plan.calls, strict=True):
        calls: dict[str, Callable[[], object]] = {piece.engine: partial(call, values)}
        call(values)
        if piece.engine == KERF:
            model = onnx_piece.model(network.graph, piece).SerializeToString()
            with suppress(Unsupported):
                calls[OTHER] = _twin(model, piece, {**plan.fixed, **values}, threads)
        found.append(Weighed(piece, least(calls)))
    return found


def _twin(model: bytes, piece: Piece, values: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    inputs = {n: np.array(values[n]) for n in piece.inputs}
    outputs = {n: np.empty_like(values[n]) for n in piece.outputs}
    run = open_piece(OTHER, model, inputs, outputs, (), threads)
    run({}, {})
    return lambda: run({}, {})


def least(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of the fastest of a few interleaved calls: what neighbours on a busy machine add is left out."""
    found = dict.fromkeys(calls, np.inf)
    begin = time.perf_counter()
    for done in range(ROUNDS):
        if done >= FEWEST and time.perf_counter() - begin > SECONDS:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name] = min(found[name], 1e6 * (time.perf_counter() - start))
    return found


def faster(network: Network, weighed: Sequence[Weighed]) -> Network:
    """Each piece with the engine that is fastest for it; neighbours of one dense engine are one piece."""
    chosen = []
    for w in weighed:
        slower = w.piece.engine == KERF and w.us[KERF] > w.us.get(OTHER, np.inf) + 2 * CHANGE_US
        chosen.append(replace(w.piece, engine=OTHER) if slower else w.piece)
    return replace(network, pieces=joined(network.graph, chosen))
