"""Networks that cannot be compiled: one line that says what is wrong, where, and nothing else."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from kerf.deploy.runtime import bundle, session
from kerf.tune.cli import main
from tests.helpers.onnx_networks import Builder

IMAGE = (1, 3, 16, 16)


def made(path, output, build, shape=IMAGE, rank=None):
    b = Builder()
    build(b)
    return b.save(path, output, shape, list("abcde")[: rank or len(shape)])


def conv(b, x="input", name="conv", channels=3, size=3, dims=2, op="Conv"):
    w = b.constant(f"{name}.weight", b.rng.standard_normal((4, channels, *[size] * dims)))
    return b.node(op, [x, w], name)


def nonzero(b):
    b.node("NonZero", [conv(b)], "found")
    b.node("Cast", ["found"], "y", to=TensorProto.FLOAT)


def training_norm(b):
    stats = [b.constant(k, np.ones(4)) for k in ("gamma", "beta", "mean", "var")]
    b.nodes.append(helper.make_node("BatchNormalization", [conv(b), *stats], ["y", "m", "v"], "norm", training_mode=1))


def doubles(b):
    w = b.node("Cast", [b.constant("w", b.rng.standard_normal((4, 3, 3, 3)))], "double", to=TensorProto.DOUBLE)
    x = b.node("Cast", ["input"], "x", to=TensorProto.DOUBLE)
    b.node("Cast", [b.node("Conv", [x, w], "conv")], "y", to=TensorProto.FLOAT)


def transposed(b):
    b.node("ConvTranspose", ["input", b.constant("w", b.rng.standard_normal((3, 4, 3, 3)))], "y", dilations=[2, 2])


def overflowing(b):
    big = b.constant("big", np.full((4, 4, 1, 1), 1e38))
    b.node("Conv", [conv(b), big], "y")


CASES = {
    "training mode": (training_norm, IMAGE, "BatchNormalization 'norm' is in training mode; call model.eval()"),
    "float64": (doubles, IMAGE, "ONNX Runtime refuses the network"),
    "channels": (lambda b: conv(b, name="y", channels=4), IMAGE, "its weights take 4 channels, its input has 3"),
    "empty": (lambda b: conv(b, name="y", size=17), IMAGE, "Conv 'y': output (1, 4, 0, 0)"),
    "unknown": (lambda b: b.node("LSTM", [conv(b), conv(b, name="w"), conv(b, name="r")], "y"), IMAGE, "LSTM"),
    "overflow": (overflowing, IMAGE, "ONNX Runtime's own output for a random image is not finite"),
}


@pytest.mark.parametrize("case", CASES)
def test_refusal_is_one_line_about_the_file(case, tmp_path, capfd):
    build, shape, words = CASES[case]
    path, out = made(tmp_path / "net.onnx", "y", build, shape), tmp_path / "net.kerf"
    assert main([f"--onnx_path={path}", "--trials=0", f"--out={out}", "--quiet"]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert words in line
    assert str(path) in line
    assert not out.exists()


WITHOUT_KERNEL = {  # what ONNX Runtime runs becomes a bundle, and it is said that kerf computes nothing of it
    "3-D": (lambda b: conv(b, name="y", dims=3), (1, 3, 8, 8, 8), "y: 3-D convolution"),
    "transposed": (transposed, IMAGE, "y: transposed convolution"),
}


@pytest.mark.parametrize("case", WITHOUT_KERNEL)
def test_a_network_without_a_layer_of_kerfs_runs_in_onnx_runtime(case, tmp_path, capfd):
    build, shape, words = WITHOUT_KERNEL[case]
    path, out = made(tmp_path / "net.onnx", "y", build, shape), tmp_path / "net.kerf"
    assert main([f"--onnx_path={path}", "--trials=0", f"--out={out}", "--seconds=0.1"]) == 0
    said = capfd.readouterr().out
    assert "kerf computes nothing of this network" in said
    assert words in said
    assert json.loads((out / "manifest.json").read_text())["engine"] in ("onnxruntime", "openvino")
    assert main([f"--onnx_path={path}", "--trials=0", f"--out={out}", "--engine=kerf"]) == 2
    assert words in capfd.readouterr().err


def test_outputs_of_sizes_that_data_decide_come_from_onnx_runtime(tmp_path):
    path, out = made(tmp_path / "net.onnx", "y", nonzero, IMAGE, 2), tmp_path / "net.kerf"
    assert main([f"--onnx_path={path}", "--trials=0", f"--out={out}", "--quiet", "--seconds=0.1", "--engine=kerf"]) == 0
    found, x = session.load(out), np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {"input": x})
    np.testing.assert_array_equal(found.run(x), wanted)
    assert {step["engine"] for step in bundle.read_manifest(out)["plans"][0]["steps"]} == {"kerf", "onnxruntime"}


def test_sorting_operators_run_without_the_compiler(tmp_path):
    def topk(b):
        k = b.integers("k", [5])
        b.nodes.append(helper.make_node("TopK", [b.node("Flatten", [conv(b)], "flat"), k], ["y", "places"], "topk"))

    path, out = made(tmp_path / "net.onnx", "y", topk, rank=2), tmp_path / "net.kerf"
    assert main([f"--onnx_path={path}", "--trials=0", f"--out={out}", "--quiet", "--seconds=0.2"]) == 0
    code = f"""
import sys, numpy as np
from kerf.deploy.runtime import session as runtime
assert runtime.load({str(out)!r}).run(np.ones({IMAGE}, np.float32)).shape == (1, 5)
assert "tvm" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert session.load(out).run(np.ones(IMAGE, np.float32)).shape == (1, 5)
