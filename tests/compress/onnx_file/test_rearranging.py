"""Channels of an .onnx file in another order: the file computes the same, and its blocks lose less."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import kerf
from kerf import cli
from kerf.compress.onnx_file.rearranging import groups, permute
from kerf.deploy.frontend.onnx_graph import Graph
from tests.helpers.onnx_files import file, node

RNG = np.random.default_rng(0)


def whole(*shape):
    """−1, 0 and 1: few enough others that sums in f32 are exact in every order."""
    return RNG.choice([-1, 0, 1], shape, p=[0.2, 0.6, 0.2]).astype(np.float32)


def branches():
    """A gate, a depthwise layer, a residual sum, a concatenation, a cut of it, and a flatten."""
    constants = {
        "w0": whole(8, 3, 3, 3), "b0": whole(8), "w1": whole(12, 8, 1, 1), "b1": whole(12), "wd": whole(12, 1, 3, 3),
        "w2": whole(8, 12, 1, 1), "g1": whole(4, 8, 1, 1), "g2": whole(8, 4, 1, 1), "factor": whole(8, 1, 1),
        "slope": whole(12, 1, 1), "w3": whole(10, 14, 1, 1), "w4": whole(40, 6), "b4": whole(6),
        "w5": whole(6, 5), "parts": np.array([6, 14]), "flat": np.array([0, 40]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w0 b0", "s", pads=[1, 1, 1, 1]),
        node("Conv", "s w1 b1", "a0"), node("PRelu", "a0 slope", "a1"),
        node("Conv", "a1 wd", "a2", pads=[1, 1, 1, 1], group=12), node("Conv", "a2 w2", "a3"),
        node("GlobalAveragePool", "s", "p0"), node("Conv", "p0 g1", "p1"), node("Relu", "p1", "p2"),
        node("Conv", "p2 g2", "p3"), node("HardSigmoid", "p3", "p4", alpha=0.25, beta=0.5),
        node("Mul", "s p4", "t0"), node("Add", "t0 a3", "t1"), node("Mul", "t1 factor", "t2"),
        node("Concat", "t2 a2", "c0", axis=1), node("Split", "c0 parts", "c1 c2", axis=1),
        node("Conv", "c2 w3", "d0", strides=[2, 2]), node("ReduceMax", "c1", "u0", axes=[1, 2, 3], keepdims=1),
        node("Sign", "u0", "u"), node("Mul", "d0 u", "d1"), node("Reshape", "d1 flat", "d2"),
        node("Gemm", "d2 w4 b4", "d3"),
        node("Relu", "d3", "d4"), node("MatMul", "d4 w5", "y"),
    ]  # fmt: skip
    return nodes, constants


def shortcut():
    """A shortcut of more channels than are there, of which others are zero, and channels that are the network's own."""
    constants = {
        "w0": whole(4, 3, 1, 1), "w1": whole(8, 4, 3, 3), "w2": whole(8, 8, 1, 1), "w3": whole(3, 8, 1, 1),
        "starts": np.array([0, 0]), "ends": np.array([4, 4]), "axes": np.array([2, 3]), "steps": np.array([2, 2]),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w0", "a"), node("Relu", "a", "r"), node("Slice", "r starts ends axes steps", "h"),
        node("Pad", "h pads", "q"), node("Conv", "r w1", "b", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Add", "q b", "s"), node("Transpose", "s", "t0", perm=[0, 2, 3, 1]), node("Relu", "t0", "t1"),
        node("Transpose", "t1", "t2", perm=[0, 3, 1, 2]), node("Conv", "t2 w2", "c"), node("Add", "c s", "d"),
        node("Conv", "d w3", "y"),
    ]  # fmt: skip
    return nodes, constants


def run(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


def shuffled(path):
    """Every group that may move in an order drawn at random; the constants that are not what they were, and all."""
    graph = Graph(onnx.load(path))
    found, note = groups(graph)
    before = dict(graph.constants)
    generator = torch.Generator().manual_seed(1)
    orders = {g.name: torch.randperm(g.width, generator=generator) for g in found if not g.fixed}
    permute(graph, found, orders)
    moved = {name for name, array in graph.constants.items() if not np.array_equal(array, before[name])}
    return graph.model(), moved, note


@pytest.mark.quick
@pytest.mark.parametrize(("network", "stay"), [
    (branches, {"w5", "parts", "flat"}), (shortcut, {"starts", "ends", "axes", "steps", "pads"}),
])  # fmt: skip
def test_any_order_of_channels_computes_the_same_to_the_last_bit(network, stay, tmp_path):
    nodes, constants = network()
    size = 4
    path = file(tmp_path / "n.onnx", nodes, constants, shape=(1, 3, size, size))
    model, moved, note = shuffled(path)
    assert note == ""
    x = whole(1, 3, size, size)
    np.testing.assert_array_equal(run(model, x)[0], run(onnx.load(path), x)[0])
    assert moved | stay | {"b0", "b1", "b4", "g1", "g2", "factor", "slope"} >= constants.keys()
    assert not moved & (stay - {"w5"})


def test_channels_that_are_not_followed_stay_and_are_told(tmp_path):
    """Behind one whose order matters, those that a constant of two readers holds, and those that are seen outside."""
    constants = {
        "w0": whole(8, 3, 1, 1), "w1": whole(8, 8, 1, 1), "w2": whole(8, 8, 1, 1), "w3": whole(8, 8, 1, 1),
        "wg": whole(8, 4, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w0", "a"), node("LRN", "a", "b", size=3), node("Conv", "b w1", "c"), node("Relu", "c", "d"),
        node("Conv", "d w2", "e"), node("Conv", "e wg", "f", group=2), node("Conv", "f w3", "y"),
    ]  # fmt: skip
    path = file(tmp_path / "n.onnx", nodes, constants, shape=(1, 3, 4, 4))
    model, moved, note = shuffled(path)
    assert moved == {"w1", "w2"}
    assert "LRN" in note
    assert "w0" in note
    assert "Conv" in note
    x = whole(1, 3, 4, 4)
    np.testing.assert_allclose(run(model, x)[0], run(onnx.load(path), x)[0], rtol=1e-5)


@pytest.mark.quick
def test_a_weight_that_two_layers_read_moves_only_as_both_know_it(tmp_path):
    constants = {"w0": whole(6, 3, 1, 1), "w": whole(6, 6, 1, 1), "w1": whole(5, 6, 1, 1), "one": whole(6, 1, 1)}
    nodes = [
        node("Conv", "x w0", "a"), node("Conv", "a w", "b"), node("Relu", "b", "c"), node("Conv", "c w", "d"),
        node("Conv", "d w1", "y"), node("Mul", "d one", "z"), node("Softmax", "one", "extra", axis=0),
    ]  # fmt: skip
    path = file(tmp_path / "n.onnx", nodes, constants, shape=(1, 3, 4, 4), outputs=("y", "z"))
    model, moved, _ = shuffled(path)
    x = whole(1, 3, 4, 4)
    for now, then in zip(run(model, x), run(onnx.load(path), x), strict=True):
        np.testing.assert_array_equal(now, then)
    assert not moved & {"one", "w"}


@pytest.fixture
def kinds(tmp_path):
    """A file whose filters are of four kinds in turn, each with inputs of its own; and samples."""
    rng = np.random.default_rng(0)
    kind = np.arange(16) % 4
    dear = kind[:, None] == np.arange(16) // 4
    middle = np.where(dear, 1, 0.01) * rng.standard_normal((16, 16))
    constants = {
        "w0": rng.standard_normal((16, 3, 3, 3)), "w1": middle[:, :, None, None],
        "w2": rng.standard_normal((5, 16, 1, 1)),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w0", "a"), node("Relu", "a", "b"), node("Conv", "b w1", "c"), node("Relu", "c", "d"),
        node("Conv", "d w2", "y"),
    ]  # fmt: skip
    stored = {name: array.astype(np.float32) for name, array in constants.items()}
    np.save(tmp_path / "x.npy", rng.standard_normal((40, 3, 8, 8)).astype(np.float32))
    return file(tmp_path / "n.onnx", nodes, stored, shape=(1, 3, 8, 8)), tmp_path / "x.npy"


def stored(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.quick
def test_filters_that_need_the_same_inputs_share_blocks(kinds, tmp_path):
    path, samples = kinds
    loose, made = (
        kerf.prune_onnx(path, tmp_path / f"{r}.onnx", samples, sparsity=0.6, rearrange=r, threads=1)
        for r in (False, True)
    )
    assert made.errors.keys() == loose.errors.keys()
    assert made.errors["w1"] < 0.05 * loose.errors["w1"]
    assert made.relative_error < loose.relative_error
    assert made.note == "filters of 1 of 2 layers rearranged (too few, or seen outside, or not followed: w2)"
    now = stored(made.path)
    blocks = np.abs(now["w1"]).reshape(4, 4, 16).sum(1)
    assert (blocks == 0).mean() == pytest.approx(38 / 64)
    assert not np.array_equal(now["w2"], stored(path)["w2"])


@pytest.mark.parametrize("transposed", [0, 1])
def test_linear_layers_are_rearranged_however_they_are_stored(transposed, tmp_path):
    rng = np.random.default_rng(0)
    dear = (np.arange(16) % 4)[:, None] == np.arange(16) // 4
    middle = np.where(dear, 1, 0.01) * rng.standard_normal((16, 16))  # (O, I)
    constants = {
        "a": rng.standard_normal((12, 16)),
        "b": middle if transposed else middle.T,
        "d": rng.standard_normal(16),
    }
    constants["c"] = rng.standard_normal((16, 5))
    nodes = [
        node("MatMul", "x a", "h0"), node("Relu", "h0", "h1"), node("Gemm", "h1 b d", "h2", transB=transposed),
        node("Relu", "h2", "h3"), node("MatMul", "h3 c", "y"),
    ]  # fmt: skip
    path = file(tmp_path / "m.onnx", nodes, {k: v.astype(np.float32) for k, v in constants.items()}, shape=("n", 12))
    np.save(tmp_path / "x.npy", rng.standard_normal((400, 12)).astype(np.float32))
    loose, made = (
        kerf.prune_onnx(
            path, tmp_path / f"{r}.onnx", tmp_path / "x.npy", sparsity=0.75, full=True, rearrange=r, threads=1
        )
        for r in (False, True)
    )
    assert made.errors["b"] < 0.05 * loose.errors["b"]
    assert made.relative_error < 0.2 * loose.relative_error


def test_int8_comes_after_it(kinds, tmp_path):
    path, samples = kinds
    plain, made = (
        kerf.prune_onnx(path, tmp_path / f"{i}.onnx", samples, sparsity=0.5, rearrange=True, int8=i, threads=1)
        for i in (False, True)
    )
    assert made.errors == plain.errors
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(made.path).graph.node}
    assert made.relative_error < plain.relative_error + 0.1


def test_a_time_is_shared_out_over_the_layers_as_they_lie_then(kinds, tmp_path, monkeypatch):
    seen = []

    class Clock:
        shares = (0.5, 0.9)

        def __init__(self, n, threads):
            pass

        def network_ms(self, path):
            weight = stored(path)["w1"]
            seen.append(weight)
            return 10 * np.count_nonzero(weight) / weight.size, 10.0, "rival"

        def layers_us(self, path, layers, n):
            return dict.fromkeys(layers, (10000.0, 5000.0, 1000.0))

    monkeypatch.setattr("kerf.tune.network_timer.Clock", Clock)
    path, samples = kinds
    made = kerf.prune_onnx(path, tmp_path / "p.onnx", samples, speedup_target=2.0, rearrange=True, threads=1)
    before, timed = stored(path)["w1"], seen[0]
    assert not np.array_equal(timed, before)
    np.testing.assert_array_equal(np.sort(timed, axis=None), np.sort(before, axis=None))
    assert made.errors["w1"] < 0.01
    assert made.allocation.latency_ms == pytest.approx(5, rel=0.05)


@pytest.mark.quick
def test_the_command_has_it(kinds, tmp_path, capsys):
    path, samples = kinds
    flags = ["--calibration", str(samples), "--rearrange", "--out", str(tmp_path / "p.onnx"), "--threads", "1"]
    assert cli.main(["prune", str(path), *flags]) == 0
    assert "filters of 1 of 2 layers rearranged" in capsys.readouterr().out
