"""kerf.compile: what model_tune.py does, as a function."""

import inspect
import json
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest

import kerf
from kerf.deploy.compiler import targets
from kerf.tune.flags import parse
from kerf.tune.request import Request
from tests.helpers.onnx_networks import mobile

FAST = {"trials": 0, "seconds": 0.2, "against": ["onnxruntime"]}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return mobile(tmp_path_factory.mktemp("pipeline") / "m.onnx")


def test_a_network_becomes_a_bundle_that_runs(network, capfd):
    bundle = kerf.compile(str(network), **FAST)
    assert tuple(capfd.readouterr()) == ("", "")
    assert bundle.path == network.with_suffix(".kerf")
    assert bundle.verified
    assert set(bundle.latency_ms) == {"kerf", "onnxruntime"}
    assert bundle.speedup == bundle.report["speedup"]["median"]
    assert bundle.report == json.loads((bundle.path / "report.json").read_text())
    assert bundle.report["schema"] == 1
    assert bundle.manifest == json.loads((bundle.path / "manifest.json").read_text())
    for rows in (bundle.report["layers"], bundle.manifest["layers"]):
        assert {(row["n"], row["block"]) for row in rows} == {(4, "4x1"), (None, None)}
    x = np.ones(bundle.manifest["input"], np.float32)
    np.testing.assert_array_equal(bundle.run(x), kerf.load(bundle.path).run(x))
    assert bundle.session() is bundle.session()
    with pytest.raises(kerf.BadInput, match="this bundle takes a numpy array float32"):
        bundle.run(x.astype(np.float64))
    assert repr(bundle).startswith(f"Bundle({str(bundle.path)!r}, ")
    assert "onnx runtime" in repr(bundle).lower()


def test_the_report_holds_the_call_that_makes_it_again(network, tmp_path):
    bundle = kerf.compile(network, tmp_path / "b", n=(2, 4), records=tmp_path / "r", **FAST)
    (command,) = bundle.report["commands"]
    assert command == (
        f"kerf.compile({str(network)!r}, {str(tmp_path / 'b')!r}, n=(2, 4), trials=0, against=('onnxruntime',), "
        f"seconds=0.2, records={str(tmp_path / 'r')!r})"
    )
    assert eval(command, {"kerf": kerf}).path == bundle.path


def test_each_step_is_said_to_who_listens(network, tmp_path):
    said = []
    bundle = kerf.compile(network, tmp_path / "b", records=tmp_path / "r", say=said.append, **(FAST | {"trials": 2}))
    assert (bundle.search.measured, bundle.search.failed) == (2, 0)
    assert any("at least 50% zero blocks of 4 rows" in line for line in said)
    assert any("2 measured" in line for line in said)


def test_what_cannot_run_here_is_built_unverified(network, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "foreign", lambda target: "needs another CPU")
    bundle = kerf.compile(network, tmp_path / "b", **FAST)
    assert (bundle.verified, bundle.unverified, bundle.report, bundle.speedup) == (
        False,
        "needs another CPU",
        None,
        None,
    )
    assert "not verified: needs another CPU" in repr(bundle)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 0}, "at least one row"),
        ({"n": ()}, "at least one row"),
        ({"sparsity": 2}, "between 0 and 1"),
        ({"threads": 0}, "expected 1 to"),
        ({"threads": 10**20}, "expected 1 to"),
        ({"batch": 0}, "expected at least 1"),
        ({"trials": -1}, "or more"),
        ({"minutes": 0}, "more than 0"),
        ({"seconds": float("nan")}, "more than 0"),
        ({"tolerance": 1}, "below 1"),
        ({"against": ["torch"]}, "torch is not known"),
        ({"precision": "int8"}, "expected one of"),
        ({"precision": "f16"}, "CPU kernels compute in f32"),
        ({"target": "z80"}, "no such CPU"),
        ({"rpc": "nowhere"}, "expected HOST:PORT"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(network, tmp_path, wrong, said):
    with pytest.raises(kerf.BadInput, match=said):
        kerf.compile(network, tmp_path / "b", **(FAST | wrong))
    assert not list(tmp_path.iterdir())


def test_one_set_of_defaults():
    """Of the function, the command and the value that both make."""
    parameters = inspect.signature(kerf.compile).parameters
    typed = vars(parse(["--onnx_path=m.onnx"], "").request)
    for field in fields(Request):
        if field.default is not MISSING:
            default = {4: (4,)}.get(parameters[field.name].default, parameters[field.name].default) or ""
            assert default == (field.default or "") == (typed[field.name] or ""), field.name
    assert typed["out"] == Path("m.kerf")


def test_the_doors_of_the_deployment_side_open_without_torch(network):
    code = f"""
import sys
sys.modules['torch'] = None
import kerf
kerf.load, kerf.compile
assert kerf.inspect({str(network)!r}).layers
"""
    without_tvm = "import sys; sys.modules['tvm'] = None; import kerf; kerf.load; kerf.inspect"
    for words in (code, without_tvm):
        done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
