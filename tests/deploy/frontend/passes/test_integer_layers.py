"""Which layers become layers of integers, with what numbers; computed by numpy they give what ONNX Runtime gives."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend import refusals
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure import quantised_reference
from kerf.deploy.measure.samples import draw
from kerf.kernels.tensor_type import F32
from tests.helpers import random_onnx
from tests.helpers.interpreted import interpreted, whole
from tests.helpers.onnx_files import file
from tests.helpers.quantised_files import NETWORKS, quantised
from tests.helpers.quantised_nodes import Drawn

SHAPE = (1, 6, 8, 8)
PER_CHANNEL = dict(scale=np.linspace(0.01, 0.02, 8), axis=0)


def read(path, seed=0):
    """(the network, the largest difference from ONNX Runtime in steps of the output, or relative)."""
    network = convert(path)
    feed = draw(network.inputs, np.random.default_rng(seed), 3)
    (y,), (truth,) = interpreted(network, feed).values(), whole(str(path), feed)
    assert y.dtype == truth.dtype
    assert y.std() > 0
    off = np.abs(y.astype(np.float64) - truth).max()
    return network, off if y.dtype.kind in "iu" else off / np.abs(truth).max()


VARIANTS = {
    "residual, by channel": ("residual", dict()),
    "residual, by tensor, uint8 weights": ("residual", dict(per_channel=False, weights="u8", WeightSymmetric=True)),
    "mobile, signed": ("mobile", dict(activations="i8")),
    "mobile, of operators": ("mobile", dict(form="qoperator", activations="i8")),
    "joined": ("joined", dict()),
    "joined, of operators": ("joined", dict(form="qoperator", per_channel=False, activations="i8")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_whole_network(tmp_path, name):
    which, how = VARIANTS[name]
    path = quantised(NETWORKS[which](tmp_path / "f.onnx"), tmp_path / "q.onnx", **how)
    network, off = read(path)
    assert all(layer.problem.x.quantised and layer.problem.y.dtype == "u8" for layer in network.layers.values())
    assert not any(layer.floats for layer in network.layers.values())
    assert off < 0.02  # a step: averages of windows lie between two integers, and sums of floats are rounded


@pytest.mark.parametrize("seed", [3, 7, 25, 88, 131])
def test_random_networks(tmp_path, seed):
    """Every operator of random_onnx between quantised layers, in either form."""
    onnx.save(random_onnx.network(seed), tmp_path / "f.onnx")
    how = dict(form=("qdq", "qoperator")[seed % 2], activations=("u8", "i8")[seed // 2 % 2])
    path = quantised(tmp_path / "f.onnx", tmp_path / "q.onnx", **how)
    network, reference = convert(path), quantised_reference.of(path)
    assert all(layer.problem.x.quantised for layer in network.layers.values())
    feed = draw(network.inputs, np.random.default_rng(1))
    for y, truth in zip(interpreted(network, feed).values(), whole(reference.model, feed), strict=True):
        np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max())


def test_operators_of_integers_of_an_old_opset(tmp_path):
    """As in the ONNX model zoo: operators of ONNX Runtime's own beside those of opset 11."""
    model = onnx.load(NETWORKS["residual"](tmp_path / "f.onnx"))
    model.opset_import[0].version, model.ir_version = 11, 7
    onnx.save(model, tmp_path / "f.onnx")
    path = quantised(tmp_path / "f.onnx", tmp_path / "q.onnx", form="qoperator", activations="i8")
    assert "QLinearAdd" in {node.op_type for node in onnx.load(path).graph.node}
    network, reference = convert(path), quantised_reference.of(path)
    assert [layer.problem.x.quantised for layer in network.layers.values()] == [True] * 7
    feed = draw(network.inputs, np.random.default_rng(1))
    (y,), (truth,) = interpreted(network, feed).values(), whole(reference.model, feed)
    np.testing.assert_allclose(y, truth, rtol=1e-5)


def test_zero_blocks_are_found_in_the_integers(tmp_path):
    path = quantised(NETWORKS["residual"](tmp_path / "f.onnx"), tmp_path / "q.onnx")
    of_floats = convert(tmp_path / "f.onnx").layers
    for name, layer in convert(path).layers.items():
        assert (layer.problem.n, layer.problem.nnzb) == (of_floats[name].problem.n, of_floats[name].problem.nnzb)
    assert convert(path).sparse_layers


def layer(tmp_path, d, output="y", shape=SHAPE, **more):
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=shape, outputs=(output,), **more)
    network, off = read(path)
    (found,) = network.layers.values()
    return network, found, off


def test_numbers_of_a_layer(tmp_path):
    d = Drawn()
    d.pair("x", "a", scale=0.05, zero=128)
    d.constant("bias.q", d.rng.integers(-3000, 3000, 8).astype(np.int32))
    d.weight("w", (8, 6, 3, 3), **PER_CHANNEL)
    d.dq("bias.q", "bias", scale=0.05 * np.linspace(0.01, 0.02, 8), zero=0, dtype="int32", axis=0)
    d.add("Relu", d.add("Conv", "a w bias", "c", pads=[1, 1, 1, 1]), "r")
    d.pair("r", "y", scale=0.3, zero=7)
    network, found, off = layer(tmp_path, d)
    assert off < 1e-6
    assert [n.op_type for n in network.graph.nodes] == ["QuantizeLinear", "Layer", "DequantizeLinear"]
    assert (found.types["x"].zero, found.types["y"].zero) == (128, 7)
    assert found.types["y"].scale == np.float32(0.3)
    assert found.problem.activation == "relu"
    np.testing.assert_array_equal(found.weight, d.constants["w.q"])
    np.testing.assert_array_equal(found.weight_scale, d.constants["w.s"])
    np.testing.assert_allclose(found.bias, d.constants["bias.q"] * d.constants["bias.s"].astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize(("scale", "taken"), [(1e-4, True), (1e-10, False)])
def test_steps_of_which_sums_have_more_than_32_bits_are_counted_behind_the_layer(tmp_path, scale, taken):
    d = Drawn()
    d.add("Conv", f"{d.pair('x', 'a')} {d.weight('w', (8, 6, 1, 1))}", "c")
    d.pair("c", "y", scale=scale, zero=128)
    network, found, off = layer(tmp_path, d)
    assert off == 0
    assert ("y" in found.types) == taken
    assert operators(network).count("QuantizeLinear") == 2 - taken


def sum_of(d):
    d.add("Conv", f"a {d.weight('w', (6, 6, 1, 1))}", "c")
    return d.add("Add", "c r", "s")


def silu_of(d):
    d.add("Conv", f"a {d.weight('w', (8, 6, 1, 1))}", "c")
    return d.add("Mul", f"c {d.add('Sigmoid', 'c', 'g')}", "s")


def clip_of(d):
    d.add("Conv", f"a {d.weight('w', (3, 2, 1, 1), dtype='uint8', zero=128)}", "c", group=3)
    bounds = d.constant("low", np.float32(0)), d.constant("high", np.float32(6))
    return d.add("Clip", f"c {' '.join(bounds)}", "s")


def test_a_residual_of_integers_is_fused(tmp_path):
    d = Drawn()
    d.pair("x", "a")
    d.pair("x", "r", scale=0.1, zero=90)
    d.q(sum_of(d), "y", scale=0.2)
    _, found, off = layer(tmp_path, d)
    assert found.types["residual_type"].zero == 90
    assert (found.problem.residual, found.problem.residual_type) == (True, None)  # that of y
    assert off == 0


@pytest.mark.parametrize("make", [silu_of, clip_of])
def test_activations_however_spelled(tmp_path, make):
    d = Drawn()
    d.pair("x", "a")
    d.q(make(d), "y", scale=0.05)
    network, found, off = layer(tmp_path, d)
    assert found.problem.activation == {"silu_of": "silu", "clip_of": "relu6"}[make.__name__]
    assert off <= 1
    assert operators(network) == ["QuantizeLinear", "Layer"]


def operators(network):
    return [n.op_type for n in network.graph.nodes]


@pytest.mark.parametrize(("op", "attributes", "shape"), [("MatMul", {}, (6, 4)), ("Gemm", {"transB": 1}, (4, 6))])
def test_dense_layers(tmp_path, op, attributes, shape):
    d = Drawn()
    d.pair("x", "a")
    columns = int(op == "MatMul")
    d.add(op, f"a {d.weight('w', shape, scale=[0.01, 0.02, 0.03, 0.04], axis=columns)}", "y", **attributes)
    _, found, off = layer(tmp_path, d, shape=(5, 6))
    assert found.problem.y == F32
    assert off < 1e-5
    np.testing.assert_array_equal(found.weight_scale, np.float32([0.01, 0.02, 0.03, 0.04]))


def test_a_signed_input_of_the_network(tmp_path):
    d = Drawn()
    d.dq("x", "a", zero=-8, dtype="int8")
    d.add("Conv", f"a {d.weight('w', (8, 6, 1, 1))}", "c")
    d.q("c", "y", scale=0.03, zero=1, dtype="int8")
    _, found, off = layer(tmp_path, d, kind=TensorProto.INT8)
    assert (found.problem.x.dtype, found.problem.y) == ("u8", F32)
    assert off <= 1


def floats_of(d, **weight):
    d.pair("x", "a")
    d.add("Conv", f"a {d.weight('w', (8, 6, 1, 1), **weight)}", "c")
    d.pair("c", "y")


FLOATS = {
    "int8 weights with zero point 5, not 0": lambda d: floats_of(d, zero=5),
    "uint8 weights with zero point 100, not 128": lambda d: floats_of(d, dtype="uint8", zero=100),
    "weights with scales of axis 1, not of output channels, 0": lambda d: floats_of(d, scale=[0.01] * 6, axis=1),
    "an input that is not quantised to 8 bits with one scale": lambda d: d.add(
        "Conv", f"x {d.weight('w', (8, 6, 1, 1))}", "y"
    ),
}


@pytest.mark.parametrize("reason", FLOATS)
def test_what_stays_in_floats_and_why(tmp_path, reason):
    d = Drawn()
    FLOATS[reason](d)
    network, found, off = layer(tmp_path, d)
    assert off < 0.01  # a step
    assert found.problem.x == F32
    (said,) = refusals.in_floats(network.layers)
    assert said == f"1 of 1 layers have quantised weights and are computed in floats: 1 for {reason} ({found.name})"


WITHOUT_KERNEL = {
    "Gemm with alpha, beta, transA or a bias for each row": ("Gemm", (6, 9), dict(alpha=0.5)),
    "MatMul with constants of more than two dimensions": ("MatMul", (2, 6, 9), {}),
    "3-D convolution": ("Conv", (8, 6, 1, 1, 1), {}),
}


@pytest.mark.parametrize("reason", WITHOUT_KERNEL)
def test_a_quantised_layer_without_a_kernel_is_described_as_one_of_floats_is(tmp_path, reason):
    (op, weight, a), d = WITHOUT_KERNEL[reason], Drawn()
    d.add(op, f"{d.pair('x', 'a')} {d.weight('w', weight)}", "y", **a)
    shape = {"Gemm": (3, 6), "MatMul": (2, 3, 6), "Conv": (1, 6, 3, 3, 3)}[op]
    graph = convert(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=shape)).graph
    assert refusals.without_kernel(graph) == {reason: ["y.node"]}


def test_weights_of_four_bits(tmp_path):
    weight = helper.make_tensor("w4", TensorProto.INT4, (8, 6), np.arange(48) % 15 - 7)
    scale = numpy_helper.from_array(np.linspace(0.1, 0.2, 8, dtype=np.float32), "s4")
    nodes = [
        helper.make_node("DequantizeLinear", ["w4", "s4"], ["w"], "dequantise", axis=0),
        helper.make_node("Gemm", ["x", "w"], ["y"], "dense", transB=1),
    ]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, (2, 6))], [value("y", TensorProto.FLOAT, (2, 8))]
    graph = helper.make_graph(nodes, "g", *ends, [weight, scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    network, off = read(tmp_path / "m.onnx")
    assert off < 1e-5
    assert network.layers["dense"].floats == "an input that is not quantised to 8 bits with one scale"


def test_weights_that_two_layers_share(tmp_path):
    d = Drawn()
    d.pair("x", "a")
    d.weight("w", (6, 6, 1, 1))
    d.pair(d.add("Conv", "a w", "c"), "b")
    d.q(d.add("Conv", "b w", "e"), "y")
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE)
    network, off = read(path)
    assert [layer.problem.x.quantised for layer in network.layers.values()] == [True, True]
    assert off <= 1


def test_without_integers_layers_are_those_of_the_numbers(tmp_path):
    """As kernels of GPUs want it."""
    d = Drawn()
    floats_of(d)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE)
    (found,) = convert(path, integers=False).layers.values()
    assert found.problem.x == F32
    np.testing.assert_allclose(found.weight, d.constants["w.q"] * np.float32(0.01), rtol=1e-6)


EXPORTED = {  # weights as exporters of quantised modules leave them: (shape stored, node between, its attributes)
    "torch, linear": ((4, 6), "Transpose", dict(perm=[1, 0])),
    "1-D convolution": ((8, 6, 3), "Unsqueeze", {}),
    "OpenVINO, depthwise": ((6, 1, 1, 3, 3), "Reshape", {}),
    "one scale": ((1, 48), "Reshape", {}),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_weights_that_are_reshaped_behind_their_scales(tmp_path, name):
    stored, op, attributes = EXPORTED[name]
    d, shape = Drawn(), {"torch, linear": (5, 6), "1-D convolution": (1, 6, 9)}.get(name, SHAPE)
    d.pair("x", "a")
    scale = 0.01 if name == "one scale" else np.linspace(0.01, 0.02, stored[0], dtype=np.float32)
    weight = d.weight("w", stored, scale=scale, **({} if name == "one scale" else dict(axis=0)))
    if op == "Unsqueeze":
        a = d.add("Unsqueeze", f"a {d.constant('rows', np.array([2]))}", "image")
        d.add("Conv", f"{a} {d.add(op, f'{weight} rows', 'wr')}", "y")
    elif op == "Reshape":
        to, groups = ([6, 1, 3, 3], 6) if len(stored) == 5 else ([8, 6, 1, 1], 1)
        d.add("Reshape", f"{weight} {d.constant('to', np.array(to))}", "wr")
        d.add("Conv", "a wr", "y", group=groups)
    else:
        d.add("MatMul", f"a {d.add(op, weight, 'wr', **attributes)}", "y")
    _, found, off = layer(tmp_path, d, shape=shape)
    assert found.problem.x.quantised
    assert not found.floats
    assert off < 1e-5


@pytest.mark.parametrize(("dtype", "zero", "low"), [("int8", 5, -122), ("uint8", 100, 1), ("uint8", 130, 3)])
def test_weights_with_a_zero_point_that_int8_reaches(tmp_path, dtype, zero, low):
    """What counts is how far they are from it."""
    d = Drawn()
    d.pair("x", "a")
    d.weight("w", (8, 6, 1, 1), dtype=dtype, zero=zero)
    most = zero + 127
    d.constants["w.q"] = np.clip(d.constants["w.q"].astype(int), low, min(most, np.iinfo(dtype).max)).astype(dtype)
    d.add("Conv", "a w", "y")
    _, found, off = layer(tmp_path, d)
    assert (found.problem.w.dtype, found.floats) == ("i8", "")
    np.testing.assert_array_equal(found.weight, d.constants["w.q"].astype(int) - zero)
    assert off < 1e-5


def test_nodes_of_the_domain_of_onnx_runtime(tmp_path):
    d = Drawn()
    d.pair("x", "a")
    d.pair(d.add("Conv", f"a {d.weight('w', (8, 6, 1, 1))}", "c"), "y", scale=0.3)
    for n in d.nodes:
        n.domain = "com.microsoft" if "Linear" in n.op_type else ""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    _, found, off = layer(tmp_path, d, opset_imports=opsets)
    assert (found.problem.x.dtype, found.problem.y.dtype) == ("u8", "u8")
    assert off < 1e-5
