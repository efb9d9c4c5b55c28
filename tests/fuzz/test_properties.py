"""Readers in this process, by hypothesis, which makes what fails small: a value, or BadInput in one line."""

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerf import failures, gate
from kerf.deploy.measure.record import Record
from kerf.deploy.runtime import manifest_check
from kerf.errors import BadInput
from kerf.failures import printable, useful
from kerf.kernels.problem import Problem
from tests.fuzz import kinds, mutate

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
JSON = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=9), v, max_size=4))
FAST = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
RECORD = Record('{"a":1}', "k", {"rows": 4}, "llvm", (1.0, 2.0), {"tvm": "1"}, cold_us=(2.0, 3.0))
TENSOR = {"dtype": "float32", "shape": [1, 3]}
MANIFEST = {
    "inputs": {"x": TENSOR}, "outputs": {"y": TENSOR}, "fallback": None, "engine": "kerf", "target": "llvm",
    "needs": {"machine": "x86_64", "features": ["avx2"]}, "threads": 1, "tvm": "0", "weights": ["w"],
    "sha256": {"a": "b"},
    "plans": [{"inputs": {"x": [1, 3]}, "library": "library.so", "values": {"x": TENSOR, "y": TENSOR}, "steps": [
        {"engine": "kerf", "inputs": ["x"], "outputs": ["y"], "function": "", "weights": [0]}]}],
}  # fmt: skip


def one_line(work, *arguments):
    try:
        return work(*arguments)
    except BadInput as error:
        said = error
    assert "\n" not in failures.one_line(said)
    assert failures.one_line(said).isprintable()
    return None


@FAST
@given(st.randoms(use_true_random=False))
def test_records(r):
    one_line(Record.from_line, kinds._record(RECORD.to_line(), r))


def test_what_is_spoiled_above_was_read():
    assert Record.from_line(RECORD.to_line()) == RECORD
    manifest_check.check(MANIFEST, "m")


@FAST
@given(st.randoms(use_true_random=False))
def test_manifests(r):
    spoiled = mutate.spoiled_json(MANIFEST, r)
    if isinstance(spoiled, dict):
        one_line(manifest_check.check, spoiled, "m")


@FAST
@given(JSON)
def test_problems(value):
    one_line(Problem.from_json, json.dumps(value))


@FAST
@given(st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_json_of_any_form(text):
    for form in (dict[str, int], manifest_check._Form, list[float]):
        one_line(gate.parsed, text, form, "f", "e")


@FAST
@given(st.randoms(use_true_random=False))
def test_arrays(r):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        path.write_bytes(mutate.npy(r, (4, 4)))
        one_line(gate.read_arrays, path)


@FAST
@given(st.text())
def test_foreign_messages_become_one_printable_line(text):
    line = printable(useful(text))
    assert line.isprintable()
    assert len(line) <= 700


def test_the_types_are_those_that_msgspec_takes():
    for form in (manifest_check._Form, manifest_check._Plan, manifest_check._Row):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert([], form)
