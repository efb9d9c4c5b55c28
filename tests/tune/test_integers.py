"""--int8: the network is quantised first, and raced against engines on integers and on floats."""

import json
import re

import numpy as np
import pytest
from onnx import TensorProto

import kerf
from kerf.deploy.cli import main as deploy_main
from kerf.deploy.measure import bench, rivals
from kerf.deploy.report import claims
from kerf.tune import proof
from kerf.tune.cli import main
from kerf.tune.places import Here
from tests.helpers.onnx_files import file
from tests.helpers.onnx_networks import mobile
from tests.helpers.quantised_nodes import Drawn
from tests.helpers.reports import engine, minimal, row

FAST = {"trials": 0, "seconds": 0.2, "against": ["onnxruntime"]}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integers")
    x = np.random.default_rng(0).standard_normal((6, 3, 32, 32)).astype(np.float32)
    np.savez(folder / "x.npz", input=x)
    return mobile(folder / "m.onnx")


@pytest.fixture(scope="module")
def compiled(network):
    said = []
    return kerf.compile(network, int8=True, calibration=network.with_name("x.npz"), say=said.append, **FAST), said


def test_one_call_quantises_compiles_and_races_both_networks(network, compiled):
    bundle, said = compiled
    assert bundle.path == network.with_suffix(".int8.kerf")
    assert bundle.verified
    assert set(bundle.latency_ms) == {"kerf", "onnxruntime", "onnxruntime int8"}
    quantised = network.with_suffix(".int8.onnx")
    assert quantised.is_file()
    assert not network.with_suffix(".kerf").exists()
    assert f"{quantised}: 8 layers on 8-bit integers, ranges of 6 calibration samples by mse" in said
    found = bundle.report["quantised"]
    assert 0 < found.pop("difference") < 0.1
    assert found == {"calibration": str(network.with_name("x.npz")), "samples": 6, "method": "mse"}
    assert any("integers differ from f32 by" in line for line in said)


def test_the_report_names_the_numbers_of_every_engine(compiled):
    bundle, _ = compiled
    page = (bundle.path / "report.html").read_text()
    for words in ("kerf int8", "ONNX Runtime f32", "ONNX Runtime int8", "Engines named f32", "6 calibration samples"):
        assert words in page
    assert "every engine, float32" not in page


def test_every_layer_says_what_it_is_computed_with(network, compiled, capsys):
    bundle, _ = compiled
    rows = (bundle.report["layers"], bundle.manifest["layers"], kerf.inspect(network.with_suffix(".int8.onnx")).layers)
    kinds = [{row["name"]: row["numbers"] for row in each} for each in rows[:2]]
    assert kinds[0] == kinds[1]
    faster = {row["name"] for row in rows[0] if row["kernel"] == claims.FLOATS_OF_BYTES}  # on a CPU without VNNI
    assert kinds[0] == {name: "f32" if name in faster else "int8" for name in kinds[0]}
    assert {layer.name: layer.numbers for layer in rows[2]} == dict.fromkeys(kinds[0], "int8")
    assert {layer.numbers for layer in kerf.inspect(network).layers} == {"f32"}
    for path in (bundle.path, network.with_suffix(".int8.onnx"), network):
        assert deploy_main(["inspect", str(path)]) == 0
        assert ("int8" in capsys.readouterr().out) == (path != network)
    assert "<td>int8</td>" in (bundle.path / "report.html").read_text()


def test_layers_that_stay_in_floats_are_named_beside_the_verdict():
    rows = [row("a", numbers="int8"), row("b", numbers="f32"), row("c")]  # c: of an older report
    rows += [row(name, numbers="f32", kernel=claims.FLOATS_OF_BYTES) for name in "defg"]
    report = minimal() | {"layers": rows, "quantised": {"difference": 0.01}}
    (said,) = [note for note in claims.quantised(report) if "floats" in note]
    assert said == "1 of 7 layers are computed in floats, the others on 8-bit integers: b."
    faster = "4 of 7 layers read and write 8-bit integers and multiply in f32, which is faster here: d, e, f, …."
    assert faster in claims.quantised(report)
    assert not any("floats" in note for note in claims.quantised(report | {"quantised": None}))


def test_the_report_holds_the_call_that_makes_it_again(network, compiled):
    bundle, _ = compiled
    (command,) = bundle.report["commands"]
    assert f"int8=True, calibration={str(network.with_name('x.npz'))!r})" in command
    assert eval(command, {"kerf": kerf}).path == bundle.path


def test_a_quantised_file_is_raced_with_its_own_f32_form(network, compiled, tmp_path):
    bundle = kerf.compile(network.with_suffix(".int8.onnx"), tmp_path / "b", **FAST)
    assert set(bundle.latency_ms) == {"kerf", "onnxruntime", "onnxruntime int8"}
    assert set(bundle.report["quantised"]) == {"difference"}
    assert 0 < bundle.report["quantised"]["difference"] < 0.1


def test_a_network_of_bytes_is_raced_with_both_forms_too(tmp_path):
    d = Drawn()
    d.dq("x", "a", scale=0.01, zero=128)
    for name, given in (("w", "a"), ("v", "b")):
        d.constant(f"{name}.q", d.rng.integers(-60, 61, (6, 6, 1, 1)).astype(np.int8))  # sums that fit 16 bits
        d.dq(f"{name}.q", name, scale=0.01, zero=0, dtype="int8")
        d.add("Conv", f"{given} {name}", f"{given}.c")
        d.pair("a.c", "b", scale=0.02, zero=128) if given == "a" else d.q("b.c", "y", scale=0.02, zero=128)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=(1, 6, 9, 7), kind=TensorProto.UINT8)
    bundle = kerf.compile(path, **FAST)
    assert set(bundle.latency_ms) == {"kerf", "onnxruntime", "onnxruntime int8"}
    assert bundle.report["quantised"]["difference"] < 0.02


def test_a_network_of_floats_is_raced_as_ever(network, tmp_path):
    bundle = kerf.compile(network, tmp_path / "b", **FAST)
    assert set(bundle.latency_ms) == {"kerf", "onnxruntime"}
    assert bundle.report["quantised"] is None
    assert "every engine, float32" in (bundle.path / "report.html").read_text()


def test_engines_that_compute_something_else_are_left_out_by_the_tolerance_of_their_numbers(
    network, compiled, tmp_path, monkeypatch
):
    """5 % off: too far for integers that differ by less than 1 % from f32, and for f32 by far."""

    def off(path, threads):
        right = bench.onnxruntime_engine(path, threads)
        return bench.Engine("openvino", lambda x: right.run(x) * (1.005 if path.stem == "f32" else 1.05))

    monkeypatch.setitem(Here.dense_engines, "openvino", off)
    monkeypatch.setattr(rivals, "multiplies_bf16", lambda: False)  # where it does, that engine is one more
    said, both = [], FAST | {"against": ["onnxruntime", "openvino"]}
    bundle = kerf.compile(network.with_suffix(".int8.onnx"), tmp_path / "b", say=said.append, **both)
    assert set(bundle.latency_ms) == {"kerf", "onnxruntime", "onnxruntime int8"}
    left_out = [line for line in said if "raced without" in line]
    assert [line.rpartition("raced without ")[2] for line in left_out] == ["openvino", "openvino int8"]
    assert "more than the 1e-03 allowed" in left_out[0]
    assert re.search("more than the [234]e-02 allowed", left_out[1])


@pytest.mark.quick
def test_a_bundle_gives_way_only_to_an_engine_on_the_same_numbers():
    latency = {
        "kerf": engine(4.0),
        "onnxruntime": engine(2.0),
        "openvino int8": engine(3.0),
        "onnxruntime int8": engine(5.0),
    }
    report = minimal() | {"latency_ms": latency, "quantised": {"difference": 0.01}}
    assert proof.alike(report)["against"] == "openvino int8"
    assert proof.alike(report | {"quantised": None})["against"] == "onnxruntime"
    floats = {name: latency[name] for name in ("kerf", "onnxruntime")}
    assert proof.alike(report | {"latency_ms": floats}) is None


WRONG = {
    "--int8 takes ranges from samples: give --calibration": ["--int8"],
    "--calibration is for quantising: give --int8 as well": ["--calibration=x.npz"],
    "nothing.npz: no such file or folder": ["--int8", "--calibration=nothing.npz"],
    "no images in it": ["--int8", "--calibration=empty"],
    "--calibration_images 0: expected at least 1": ["--int8", "--calibration=x.npz", "--calibration_images=0"],
    "--std 0.2 0.0 0.2: expected 3 numbers": ["--int8", "--calibration=x.npz", "--std", "0.2", "0", "0.2"],
    "kernels for CUDA compute with floats": ["--int8", "--calibration=x.npz", "--target=cuda -arch=sm_90"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_one_line_exit_2_and_nothing_written(network, tmp_path, monkeypatch, capsys, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "x.npz", input=np.zeros((1, 3, 32, 32), np.float32))
    assert main([f"--onnx_path={network}", *WRONG[message], "--out=out"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "x.npz"]


def test_the_command_line_takes_the_same(network, tmp_path, capsys):
    flags = ["--int8", f"--calibration={network.with_name('x.npz')}", "--calibration_images=2", "--trials=0"]
    out = tmp_path / "b.kerf"
    assert main([f"--onnx_path={network}", *flags, "--seconds=0.2", "--against=onnxruntime", f"--out={out}"]) == 0
    assert "ONNX Runtime int8" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["quantised"]["samples"] == 2
    assert (tmp_path / "b.int8.onnx").is_file()
