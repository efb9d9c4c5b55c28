"""A compiled network as a bundle's manifest has it: the steps of a plan, with the models and weights that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.frontend.onnx_graph import Graph, Value
from kerf.deploy.partition import onnx_piece
from kerf.deploy.runtime.manifest import PlanEntry, Step, Tensor, is_own
from kerf.deploy.runtime.session import Session

LIBRARY = "library.so"


@dataclass(frozen=True)
class Steps:
    """Of one plan or several. ``models``: file -> ONNX model; ``weights``: (name, array), in the order that the steps
    count.
    """

    entries: list[PlanEntry]
    models: dict[str, bytes]
    weights: list[tuple[str, np.ndarray]]


def steps(network: Network, built: Built | None, prefix: str = "") -> Steps:
    """Of one plan. ``built`` is None where no piece is kerf's; ``prefix``: of the files' names."""
    graph = network.graph
    done: list[Step] = []
    models: dict[str, bytes] = {}
    weights: list[tuple[str, np.ndarray]] = []
    for piece in network.run_by:
        exchanged: Any = {"engine": piece.engine, "inputs": list(piece.inputs), "outputs": list(piece.outputs)}
        if piece.engine == KERF:
            assert built is not None  # it was compiled for these pieces
            own = built.functions[piece.key]
            packed, first = built.packed[own], len(weights)
            weights.extend(packed.items())
            suffix = f"_{own}" if own else ""
            done.append(exchanged | {"function": suffix, "weights": list(range(first, first + len(packed)))})
        else:
            file = f"{prefix}{piece.engine}_{len(models)}.onnx"
            models[file] = onnx_piece.model(graph, piece).SerializeToString()
            done.append(exchanged | {"file": file})
    names = {name for piece in network.run_by for name in (*piece.inputs, *piece.outputs)}
    sizes: dict[str, Any] = {v.name: list(v.shape) for v in network.inputs if v.shape and None not in v.shape}
    entry: PlanEntry = {
        "inputs": sizes,
        "library": f"{prefix}{LIBRARY}" if built else None,
        "steps": done,
        "values": {name: tensor(graph, name) for name in sorted(names)},
    }
    return Steps([entry], models, weights)


def together(plans: Sequence[Steps]) -> Steps:
    """Of one bundle: weights that plans share are stored once."""
    found, at = Steps([], {}, []), {}
    for plan in plans:
        found.models.update(plan.models)
        moved = []
        for name, array in plan.weights:
            key = name, array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()
            if key not in at:
                at[key] = len(found.weights)
                found.weights.append((name, array))
            moved.append(at[key])
        for entry in plan.entries:
            own: list[Any] = [
                s | {"weights": [moved[i] for i in s["weights"]]} if is_own(s) else s for s in entry["steps"]
            ]
            found.entries.append({**entry, "steps": own})
    return found


def tensor(graph: Graph, name: str) -> Tensor:
    """Type and sizes; no sizes where one is open, or for what is no tensor of numbers."""
    value = graph.described(name)
    sized = value.shape is not None and None not in value.shape and value.dtype != "object"
    return {"dtype": value.dtype, "shape": list(value.shape) if sized and value.shape is not None else None}


def ends(values: Sequence[Value]) -> dict[str, Tensor]:
    """Inputs or outputs of a network, as a manifest has them."""
    return {v.name: {"dtype": v.dtype, "shape": None if v.shape is None else list(v.shape)} for v in values}


def session(network: Network, built: Built | None, threads: int) -> Session:
    """The compiled network in this process, without a bundle."""
    made = steps(network, built)
    contents = {
        "inputs": ends(network.inputs), "outputs": ends(network.outputs), "plans": made.entries, "threads": threads,
    }  # fmt: skip
    libraries = {LIBRARY: built.runnable()} if built else {}
    return Session(contents, libraries, [a for _, a in made.weights], made.models, threads)
