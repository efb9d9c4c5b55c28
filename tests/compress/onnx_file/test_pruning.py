"""Pruning an .onnx file by calibration: what is written, what it computes, what is told, what is refused."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import kerf
from kerf import cli
from kerf.deploy.frontend.zero_blocks import zero_blocks
from kerf.errors import BadInput
from tests.helpers.onnx_files import file, node

SIZE = (3, 16, 16)


class Net(nn.Module):
    """A residual sum, a depthwise layer, and convolutions with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.wide = nn.Conv2d(8, 24, 1, bias=False)
        self.deep = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.narrow = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.narrow(torch.relu(self.deep(torch.relu(self.wide(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx_file") / "net.onnx"
    return kerf.export(Net().eval(), torch.randn(1, *SIZE), path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    torch.manual_seed(1)
    images = nn.functional.interpolate(torch.randn(60, 3, 4, 4), size=16, mode="bilinear") + 0.1 * torch.randn(
        60, *SIZE
    )
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, input=images.numpy())
    return path


def answers(path, images):
    run = onnxruntime.InferenceSession(str(path))
    return np.concatenate([run.run(None, {"input": image[None]})[0] for image in images])


@pytest.mark.quick
def test_blocks_are_zero_and_answers_nearer_than_by_l1(network, samples, tmp_path):
    made = kerf.prune_onnx(network, tmp_path / "p.onnx", samples, n=4, threads=1)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
    assert len(made.errors) == 2
    for name, error in made.errors.items():
        blocks = np.abs(stored[name]).reshape(len(stored[name]) // 4, 4, stored[name].shape[1]).sum(1)
        assert (blocks == 0).mean() == 0.5
        assert 0 < error < 1
    model = onnx.load(network)
    zero_blocks(model, 4, 0.5, network)
    onnx.save(model, tmp_path / "l1.onnx")
    images = np.load(samples)["input"]
    truth = answers(network, images)
    ours, others = (np.square(answers(tmp_path / f, images) - truth).sum() for f in ("p.onnx", "l1.onnx"))
    assert ours < 0.5 * others
    held = images[::5]
    error = np.linalg.norm(answers(made.path, held) - truth[::5]) / np.linalg.norm(truth[::5])
    assert made.relative_error == pytest.approx(error, rel=1e-3)
    assert made.agreement == np.mean(answers(made.path, held).argmax(1) == truth[::5].argmax(1))
    assert (made.samples, made.held_back) == (48, 12)


def test_gemm_is_pruned_where_asked_and_the_classifier_stays(tmp_path):
    rng = np.random.default_rng(0)
    constants = {
        name: rng.standard_normal(s).astype(np.float32) for name, s in (("a", (6, 16)), ("b", (8, 16)), ("c", (8, 3)))
    }
    nodes = [
        node("MatMul", "x a", "h0"), node("Relu", "h0", "h1"), node("Gemm", "h1 b", "h2", transB=1),
        node("Relu", "h2", "h3"), node("MatMul", "h3 c", "y"),
    ]  # fmt: skip
    path = file(tmp_path / "m.onnx", nodes, constants, shape=("n", 6))
    np.save(tmp_path / "x.npy", rng.standard_normal((400, 6)).astype(np.float32))
    with pytest.raises(BadInput, match="full=True"):
        kerf.prune_onnx(path, tmp_path / "p.onnx", tmp_path / "x.npy")
    made = kerf.prune_onnx(path, tmp_path / "p.onnx", tmp_path / "x.npy", full=True, threads=1)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
    assert list(made.errors) == ["b"]
    assert (stored["b"].reshape(2, 4, 16) == 0).all(1).mean() == 0.5
    assert np.count_nonzero(stored["c"]) == stored["c"].size


@pytest.mark.quick
def test_block_rows_keep_equally_many_where_asked(network, samples, tmp_path):
    made = kerf.prune_onnx(network, tmp_path / "p.onnx", samples, n=4, sparsity=0.7, row_multiple=4, threads=1)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
    widths = set()
    for name in made.errors:
        kept = np.abs(stored[name]).reshape(len(stored[name]) // 4, 4, stored[name].shape[1]).sum(1) > 0
        widths.add((kept.shape[1], *np.unique(kept.sum(1))))
    assert widths == {(8, 4), (24, 8)}  # of 8 inputs 3 stay, of 24 8: raised to multiples of 4


def test_int8_quantises_what_is_left_and_keeps_its_zero_blocks(network, samples, tmp_path):
    plain, made = (
        kerf.prune_onnx(network, tmp_path / f"{int8}.onnx", samples, n=4, sparsity=0.5, int8=int8, threads=1)
        for int8 in (False, True)
    )
    model = onnx.load(made.path)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
    weights = [w for w in weights if w.dtype == np.int8 and w.ndim == 4 and w.shape[1] > 3]
    assert len(weights) == len(made.errors)
    for w in weights:
        assert (w.reshape(len(w) // 4, 4, -1, *w.shape[2:]) == 0).all((1, 3, 4)).mean() >= 0.5
    assert made.errors == plain.errors
    assert plain.relative_error < made.relative_error < plain.relative_error + 0.1


def test_the_command_prints_each_layer_and_what_compiles_the_file(network, samples, tmp_path, capsys):
    flags = ["prune", str(network), "--calibration", str(samples), "--out", str(tmp_path / "p.onnx"), "--threads", "1"]
    assert cli.main(flags) == 0
    said = capsys.readouterr().out
    assert "relative error" in said
    assert f"kerf tune --onnx_path {tmp_path / 'p.onnx'} --bsr 4 --sparsity 0.5" in said
    assert cli.main([*flags, "--json", "--calibration_images", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 4
    assert found["files"] == [str(tmp_path / "p.onnx")]


def test_bad_input_is_one_line_and_nothing_is_written(network, samples, tmp_path, capsys):
    images = np.load(samples)["input"]
    np.savez(tmp_path / "small.npz", input=images[:, :, :8, :8])
    images[0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", input=images)
    for given, more, words in (
        (tmp_path / "small.npz", (), "expected"), (tmp_path / "nan.npz", (), "NaN"), (tmp_path / "none", (), "no such"),
        (samples, ("--sparsity", "1.5"), "sparsity 1.5"), (samples, ("--N", "0"), "n 0"),
        (samples, ("--row_multiple", "-4"), "row_multiple -4"),
    ):  # fmt: skip
        flags = ["prune", str(network), "--calibration", str(given), "--out", str(tmp_path / "p.onnx"), *more]
        assert cli.main(flags) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "p.onnx").exists()


def test_a_network_without_layers_to_prune_is_refused(samples, tmp_path):
    weight = np.ones((4, 3, 1, 1), np.float32)
    path = file(tmp_path / "one.onnx", [node("Conv", "x w", "y")], {"w": weight}, shape=(1, *SIZE))
    np.save(tmp_path / "x.npy", np.load(samples)["input"])
    with pytest.raises(BadInput, match="no layer to prune"):
        kerf.prune_onnx(path, tmp_path / "p.onnx", tmp_path / "x.npy")


class Clock:
    """A machine on which time is the share of weights that are there, and layers alone promise a third too much."""

    shares = (0.5, 0.9)

    def __init__(self, n, threads):
        Clock.asked = n, threads

    def network_ms(self, path):
        stored = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
        kept, total = (sum(f(w) for w in stored if w.ndim == 4) for f in (np.count_nonzero, np.size))
        return 10 * kept / total, 12.0, "rival"

    def layers_us(self, path, layers, n):
        model = onnx.load(path)
        assert all(d.HasField("dim_value") for i in model.graph.input for d in i.type.tensor_type.shape.dim)
        sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) == 4}
        named = {node.name: sizes[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}
        each = 1.3e4 / sum(sizes.values())
        return {name: tuple(each * named[name] * (1 - s) for s in (0, *self.shares)) for name in layers}


def test_shares_by_layer_meet_a_time_and_what_costs_least_goes(network, samples, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kerf.tune.network_timer.Clock", Clock)
    made = kerf.prune_onnx(network, tmp_path / "p.onnx", samples, n=4, speedup_target=1.6, threads=1)
    assert made.allocation is not None
    assert made.allocation.target_ms == pytest.approx(7.5)
    assert made.allocation.latency_ms == pytest.approx(7.5, rel=0.05)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
    for name, share in made.allocation.shares.items():
        blocks = np.abs(stored[name]).reshape(len(stored[name]) // 4, 4, stored[name].shape[1]).sum(1)
        assert (blocks == 0).mean() == pytest.approx(int(blocks.size * share + 1e-9) / blocks.size)
    assert Clock.asked == ((4,), 1)
    assert "--sparsity 0.15" in made.command
    assert "asked for 7.500; dense in rival 12.000 ms" in str(made)
    flags = [
        "--calibration",
        str(samples),
        "--out",
        str(tmp_path / "q.onnx"),
        "--speedup_target",
        "9",
        "--threads",
        "1",
    ]
    assert cli.main(["prune", str(network), *flags]) == 2
    assert "cannot be met" in capsys.readouterr().err
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.quick
@pytest.mark.parametrize(("more", "words"), [
    ({"sparsity": 0.5}, "give one"), ({"int8": True}, "leave int8 out"), ({"speedup_target": -1.0}, "above 0"),
])  # fmt: skip
def test_a_time_is_asked_for_alone(network, samples, tmp_path, more, words):
    with pytest.raises(BadInput, match=words):
        kerf.prune_onnx(network, tmp_path / "p.onnx", samples, **{"speedup_target": 2.0, **more})


def test_where_no_layer_loses_a_block_nothing_is_written(network, samples, tmp_path):
    with pytest.raises(BadInput, match="no layer loses a block"):
        kerf.prune_onnx(network, tmp_path / "p.onnx", samples, row_multiple=2**31)
    assert not (tmp_path / "p.onnx").exists()
