"""Quantising a file: what is written, what ONNX Runtime computes of it, what is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import kerf
from kerf.deploy import cli
from kerf.deploy.quantise.calibration import METHODS, Calibration
from tests.helpers.onnx_files import F, file, node
from tests.helpers.onnx_networks import mobile

SIZE = (3, 32, 32)


def session(path):
    """Node by node: on a CPU without VNNI ONNX Runtime's fused layers saturate."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options)


def outputs(path, images):
    run, name = session(path), session(path).get_inputs()[0].name
    return np.concatenate([run.run(None, {name: image[None]})[0] for image in images])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((8, *SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return mobile(tmp_path_factory.mktemp("f32") / "m.onnx", batch="n")


@pytest.fixture(scope="module")
def samples(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, input=images)
    return path


@pytest.mark.quick
@pytest.mark.parametrize("method", METHODS)
def test_the_file_computes_what_the_network_does_within_its_steps(network, samples, images, tmp_path, method):
    made = kerf.quantise(network, tmp_path / "q.onnx", Calibration(samples, method))
    assert (made.samples, made.layers, made.method) == (8, 8, method)
    truth, found = outputs(network, images), outputs(made.path, images)
    assert 0 < np.abs(found - truth).max() < 0.1 * np.abs(truth).max()
    assert outputs(made.path, np.concatenate([images, images])).shape == (16, 10)


def test_weights_are_symmetric_by_channel_and_zero_blocks_stay_zero(network, samples, tmp_path):
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(network).graph.initializer}
    model = onnx.load(kerf.quantise(network, tmp_path / "q.onnx", samples).path)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {n.input[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored}
    weights = {k: n for k, n in weights.items() if stored[k].dtype == np.int8}
    assert len(weights) == 8
    for name, reader in weights.items():
        integers, scale, zero = (stored[i] for i in reader.input)
        assert scale.shape == (integers.shape[0],)
        assert not zero.any()
        assert np.abs(integers.reshape(len(integers), -1).astype(int)).max(1).tolist() == [127] * len(integers)
        f32 = before.get(name.removesuffix("_quantized"))
        if f32 is not None and name.startswith(("expand", "project", "spatial")):
            assert 0.3 < (f32 == 0).mean() < 0.7
            np.testing.assert_array_equal(integers[f32 == 0], 0)
    kinds = {n.op_type for n in model.graph.node}
    assert "BatchNormalization" not in kinds
    assert not kinds & {"Clip", "Relu"}, "rounding to uint8 clips"
    scales = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert {stored[n.input[2]].dtype for n in scales} == {np.dtype(np.uint8)}


def test_what_the_file_says_of_its_ends_stays(network, samples, tmp_path):
    before, after = (session(p) for p in (network, kerf.quantise(network, tmp_path / "q.onnx", samples).path))
    for ends in ("get_inputs", "get_outputs"):
        said = [[(v.name, v.type) for v in getattr(s, ends)()] for s in (before, after)]
        assert said[0] == said[1]
    assert after.get_inputs()[0].shape == ["n", *SIZE]


def test_attention_keeps_its_products_of_activations_in_f32(tmp_path):
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    nodes = [node("MatMul", "x w", "a"), node("Transpose", "a", "t", perm=[0, 2, 1]), node("MatMul", "a t", "s")]
    nodes += [node("Softmax", "s", "p"), node("MatMul", "p a", "o"), node("Add", "o x", "y")]
    path = file(tmp_path / "a.onnx", nodes, {"w": w}, shape=(1, 4, 16))
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((6, 4, 16)).astype(np.float32))
    made = kerf.quantise(path, tmp_path / "q.onnx", tmp_path / "x.npy")
    assert made.layers == 1
    model = onnx.load(made.path)
    makers = {output: n.op_type for n in model.graph.node for output in n.output}
    read = {n.name: [makers.get(i) for i in n.input] for n in model.graph.node if n.op_type == "MatMul"}
    assert read["a.node"] == ["DequantizeLinear", "DequantizeLinear"]
    assert read["o.node"][0] == "Softmax"


def test_biases_make_up_for_what_rounding_adds_to_the_mean(tmp_path):
    """One convolution of a constant image: the mean is the image, so nothing of the rounding may be left."""
    w = np.random.default_rng(0).uniform(0.5, 1, (4, 3, 1, 1)).astype(np.float32)
    path = file(tmp_path / "c.onnx", [node("Conv", "x w", "y")], {"w": w}, shape=(1, 3, 8, 8))
    x = np.broadcast_to(np.array([255, 128, 64], np.float32).reshape(1, 3, 1, 1), (1, 3, 8, 8)).copy()
    np.save(tmp_path / "x.npy", x)
    made = kerf.quantise(path, tmp_path / "q.onnx", Calibration(tmp_path / "x.npy", "minmax"))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
    scale, integers = stored["w_scale"], stored["w_quantized"]
    added = ((integers * scale.reshape(-1, 1, 1, 1) - w)[..., 0, 0].astype(np.float64) * [255, 128, 64]).sum(1)
    assert np.abs(added).max() > 0.05
    bias = next(v for k, v in stored.items() if k.endswith("bias_quantized")) * scale * stored["x_scale"]
    np.testing.assert_allclose(bias, -added, atol=float(scale.max() * stored["x_scale"]))


WRONG = {
    "no such file or folder": lambda t: t / "nothing",
    "no images in it": lambda t: t,
    "array 'input' is of float64; the network takes float32": lambda t: arrays(t, input=np.zeros((2, *SIZE))),
    "array 'input' is 2x3x16x16; expected any number of samples x 3x32x32": lambda t: arrays(
        t, input=np.zeros((2, 3, 16, 16), "f")
    ),
    "array 'input' is 0x3x32x32": lambda t: arrays(t, input=np.zeros((0, *SIZE), "f")),
    "arrays for other; the network's inputs are input": lambda t: arrays(t, other=np.zeros((2, *SIZE), "f")),
    "array 'input' holds NaN or infinity": lambda t: arrays(t, input=np.full((2, *SIZE), np.nan, "f")),
    "not an .npy array, nor an .npz": lambda t: text(t),
}


def arrays(folder, **named):
    np.savez(folder / "x.npz", **named)
    return folder / "x.npz"


def text(folder):
    (folder / "x.npz").write_text("no arrays")
    return folder / "x.npz"


@pytest.mark.quick
@pytest.mark.parametrize("message", WRONG)
def test_samples_that_do_not_fit_are_one_line_and_nothing_is_written(network, tmp_path, capsys, message):
    (tmp_path / "in").mkdir()
    given = WRONG[message](tmp_path / "in")
    out = tmp_path / "out" / "q.onnx"
    assert cli.main(["quantise", str(network), "--calibration", str(given), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not out.parent.exists()


def test_networks_that_cannot_be_quantised_are_refused(network, samples, tmp_path):
    once = kerf.quantise(network, tmp_path / "q.onnx", samples).path
    with pytest.raises(kerf.BadInput, match="is quantised already"):
        kerf.quantise(once, tmp_path / "twice.onnx", samples)
    bare = file(tmp_path / "bare.onnx", [node("Relu", "x", "y")], {}, kind=F)
    with pytest.raises(kerf.BadInput, match="nothing to quantise"):
        kerf.quantise(bare, tmp_path / "none.onnx", samples)
    weight = {"w": np.ones((4, 3), np.float32)}
    nodes = [node("Hardmax", "x", "h"), node("Gemm", "h w", "y", transB=1)]
    old = file(tmp_path / "old.onnx", nodes, weight, opset=11, shape=(1, 3))
    with pytest.raises(kerf.BadInput, match="is of opset 11, in which weights have one scale"):
        kerf.quantise(old, tmp_path / "none.onnx", samples)
    huge = mobile(tmp_path / "huge.onnx")
    with pytest.raises(kerf.BadInput, match="is NaN or infinite for a calibration sample"):
        kerf.quantise(huge, tmp_path / "none.onnx", arrays(tmp_path, input=np.full((1, *SIZE), 3e38, "f")))
    with pytest.raises(kerf.BadInput, match="no input 'y'; its inputs are 'input'"):
        kerf.quantise(network, tmp_path / "none.onnx", samples, shapes={"y": (1, *SIZE)})
    for wrong, words in (((1, 3, 64, 64), "cannot be 1x3x64x64"), ((3, 32, 32), "--shape gives 3x32x32")):
        with pytest.raises(kerf.BadInput, match=words):
            kerf.quantise(network, tmp_path / "none.onnx", samples, shapes={"input": wrong})
    f32 = network.read_bytes()
    with pytest.raises(kerf.BadInput, match="the f32 file itself, which would be lost"):
        kerf.quantise(network, network.parent / "." / network.name, samples)
    assert network.read_bytes() == f32
    assert not (tmp_path / "none.onnx").exists()
    assert not (tmp_path / "twice.onnx").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "entropy"}, "--calibration_method entropy: expected one of minmax, percentile, mse"),
        ({"images": 0}, "--calibration_images 0: expected at least 1"),
        ({"mean": (0.5, 0.5)}, "--mean 0.5 0.5"),
        ({"std": (1.0, 0.0, 1.0)}, "deviations above 0"),
    ],
)
def test_a_calibration_of_values_that_mean_nothing_is_refused(samples, wrong, message):
    with pytest.raises(kerf.BadInput) as refused:
        Calibration(samples, **wrong)
    assert message in str(refused.value)


def test_sizes_that_the_network_does_not_take_are_one_line(tmp_path, capfd):
    weight = {"w": np.ones((5, 3 * 16 * 16), np.float32)}
    nodes = [node("Flatten", "x", "flat"), node("Gemm", "flat w", "y", transB=1)]
    path = file(tmp_path / "m.onnx", nodes, weight, shape=(1, 3, "h", "w"))
    given = arrays(tmp_path, x=np.zeros((2, 3, 8, 8), "f"))
    out = tmp_path / "out" / "q.onnx"
    assert cli.main(["quantise", str(path), "--calibration", str(given), "--out", str(out)]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert f"{path}: ONNX Runtime cannot run the network on a calibration sample" in line
    assert not out.parent.exists()


def test_the_command_says_what_it_wrote(network, samples, capsys):
    assert cli.main(["quantise", str(network), "--calibration", str(samples), "--calibration_images=3"]) == 0
    path = network.with_suffix(".int8.onnx")
    assert capsys.readouterr().out == f"{path}: 8 layers on 8-bit integers, ranges of 3 calibration samples by mse\n"
    assert path.is_file()


def test_links_in_a_circle_are_one_line(tmp_path, capsys):
    (tmp_path / "m.onnx").symlink_to(tmp_path / "m.onnx")
    assert cli.main(["quantise", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path)]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def test_what_onnx_runtimes_quantiser_does_not_take_is_one_line(network, samples, tmp_path, monkeypatch):
    from onnxruntime.quantization import QDQQuantizer

    def fails(self):
        raise ValueError("Unable to get valid quantization scale\nfor input 'relu'")

    monkeypatch.setattr(QDQQuantizer, "quantize_model", fails)
    with pytest.raises(ValueError, match=r"m\.onnx: ONNX Runtime's quantiser cannot .*: Unable to get") as refusal:
        kerf.quantise(network, tmp_path / "q.onnx", samples)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "q.onnx").exists()
