"""A manifest held to what the types of kerf.deploy.runtime.manifest say, and to what they cannot: names of files that
stay in the bundle, sizes that fit together, positions that exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypedDict

import ml_dtypes  # numpy has bfloat16, by name too, once it is imported
import numpy as np

from kerf import gate
from kerf.deploy.runtime.manifest import MOST_THREADS, KerfStep, Manifest, OnnxStep, Tensor
from kerf.errors import BadInput

assert ml_dtypes
EXPECTED = "a bundle's manifest; build the bundle again"


class _Plan(TypedDict):
    inputs: dict[str, list[int]]
    library: str | None
    steps: list[dict[str, Any]]  # of either kind: msgspec takes no union of the two
    values: dict[str, Tensor]


class _Needs(TypedDict):
    machine: str
    features: list[str]


class _Row(TypedDict):
    name: str
    shape: str
    block: str | None
    density: float
    kernel: str
    config: dict[str, Any]


class _Form(TypedDict):
    """What every reader of a manifest relies on."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    plans: list[_Plan]
    fallback: str | None
    engine: str
    target: str
    needs: _Needs
    threads: int
    tvm: str
    weights: list[str]
    sha256: dict[str, str]


def check(manifest: Manifest, name: str) -> None:
    """Raises BadInput, which begins with ``name`` and says where in it what is wrong."""
    form = gate.converted(manifest, _Form, name, EXPECTED)
    try:
        _check(form)
        for layer in manifest.get("layers", ()):
            gate.converted(layer, _Row, name, EXPECTED)
            gate.converted(layer.get("numbers", ""), str, name, EXPECTED)
        for key in ("model", "cuda_source"):
            gate.converted(manifest.get(key, ""), str, f"{name}: {key}", EXPECTED)
        for key in ("layers", "weight_types"):
            gate.converted(manifest.get(key, []), list[dict[str, Any]], f"{name}: {key}", EXPECTED)
    except _Wrong as error:
        raise BadInput(f"{name}: {error}; expected {EXPECTED}") from None


class _Wrong(ValueError):
    pass


def _check(form: _Form) -> None:
    if not 1 <= form["threads"] <= MOST_THREADS:
        raise _Wrong(f"{form['threads']} threads")
    _each_tensor({**form["inputs"], **form["outputs"]})
    for name in (*form["sha256"], form["fallback"]):
        _stays(name)
    if not form["inputs"] or not form["outputs"]:
        raise _Wrong("no inputs or no outputs")
    for plan in form["plans"]:
        _check_plan(plan, form)


def _check_plan(plan: _Plan, form: _Form) -> None:
    _stays(plan["library"])
    _each_tensor(plan["values"])
    if set(plan["inputs"]) != set(form["inputs"]):
        raise _Wrong("a plan for other inputs than the network's")
    known = set(plan["inputs"])
    for name, shape in plan["inputs"].items():
        value = {"dtype": form["inputs"][name]["dtype"], "shape": shape}
        _each_tensor({name: value})
        if not _alike(shape, form["inputs"][name]["shape"]):
            raise _Wrong(f"a plan for an input {name!r} of other sizes than the network's")
    for step in plan["steps"]:
        own = "function" in step
        try:
            checked: Any = gate.converted(step, KerfStep if own else OnnxStep, "", "")
        except BadInput as error:
            raise _Wrong(f"a step{str(error).partition(';')[0]}") from None
        if own and plan["library"] is None:
            raise _Wrong("a piece of kerf's without a library")
        for i in checked["weights"] if own else ():
            if not 0 <= i < len(form["weights"]):
                raise _Wrong(f"weight {i} of {len(form['weights'])}")
        if not own:
            _stays(checked["file"])
        absent = [n for n in (*checked["inputs"], *checked["outputs"]) if n not in plan["values"]]
        absent += [n for n in checked["inputs"] if n not in known]
        if absent or not checked["outputs"]:
            raise _Wrong(
                f"a step that reads or makes {absent[0]!r}, of which nothing is said" if absent else "an idle step"
            )
        known |= set(checked["outputs"])
    if lacking := [n for n in form["outputs"] if n not in known]:
        raise _Wrong(f"no step makes the output {lacking[0]!r}")


def _each_tensor(tensors: dict[str, Any]) -> None:
    total = 0
    for name, tensor in tensors.items():
        try:
            size = np.dtype(tensor["dtype"]).itemsize
        except TypeError:
            raise _Wrong(f"{name!r} is of type {tensor['dtype']!r}") from None
        total += size * _count(name, tensor["shape"])
        if total > gate.TENSOR_BYTES:
            raise _Wrong(f"tensors of {total:,} bytes; a bundle's have at most {gate.TENSOR_BYTES:,}")


def _count(name: str, shape: Any) -> int:
    if shape is None:
        return 0
    sizes: Iterable[Any] = shape if isinstance(shape, list) else [-1]
    if not all(size is None or (type(size) is int and 0 <= size < 2**40) for size in sizes):
        raise _Wrong(f"{name!r} has the shape {shape!r}")
    return math.prod(size for size in sizes if size is not None)


def _alike(shape: list[int], said: Any) -> bool:
    return said is None or (len(said) == len(shape) and all(b in (None, a) for a, b in zip(shape, said)))


def _stays(name: str | None) -> None:
    """Of a file: in the bundle's folder."""
    if name is not None and (not name or {*name} & {"/", "\\", "\0"} or name in (".", "..")):
        raise _Wrong(f"a file {name!r}, which is no plain name")
