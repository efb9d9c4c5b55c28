"""Quantised networks compiled: everything but the layers' kernels, for which slow ones stand in."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend import clean
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.operators import table
from kerf.deploy.frontend.operators.fusion import operations
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.samples import alone, draw, listed
from kerf.deploy.measure.verify import verify
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.plain import plain
from kerf.deploy.plans import pieces
from kerf.kernels.cpu.form import PaddedPlanes
from kerf.kernels.pointwise.program import IMAGE, PLANE
from tests.helpers.compiled import TARGET, checked, compiled
from tests.helpers.interpreted import interpreted, whole
from tests.helpers.onnx_files import file
from tests.helpers.quantised_files import NETWORKS, quantised
from tests.helpers.quantised_nodes import Drawn
from tests.helpers.slow_integers import slow_integers
from tests.helpers.sums_apart import sums_apart

__all__ = ["slow_integers"]  # a fixture

SHAPE = (1, 6, 9, 7)


@pytest.mark.parametrize(
    ("which", "how"),
    [
        ("residual", dict(activations="i8")),
        ("mobile", dict(form="qoperator", activations="i8")),
        ("joined", dict()),
    ],
    ids=str,
)
def test_one_piece_without_a_difference(tmp_path, slow_integers, which, how):
    path = quantised(NETWORKS[which](tmp_path / "f.onnx"), tmp_path / "q.onnx", **how)
    network, session = compiled(path)
    assert [piece.engine for piece in network.run_by] == ["kerf"]
    feed = draw(network.inputs, np.random.default_rng(7))
    (y,), (expected,) = listed(session.run(alone(feed))), interpreted(network, feed).values()
    if which == "joined":  # its averages of four lie between two integers, as often as not
        assert np.abs(y - expected).max() <= 0.02 * np.abs(expected).max()
    else:
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    verify(session.run, path, network.inputs, dense=False)


def test_what_follows_is_one_pass_over_bytes(tmp_path):
    path = quantised(NETWORKS["mobile"](tmp_path / "f.onnx"), tmp_path / "q.onnx")
    graph = convert(path).graph
    found = operations(graph, PaddedPlanes.operators)
    read = {name for op in found.by_output.values() for name in op.tensors}
    read |= {name for node in graph.nodes if node.op_type == "Layer" for name in node.input}
    own = [op for t, op in found.by_output.items() if t in read and len(op.shape) == 4 and op.shape[2] > 1]
    images = [op.arguments["pointwise"] for op in own if op.function == "pointwise"]
    assert len(images) == 3  # of the input, affine, squeeze-excite; the sum is in its layer
    assert sum(op.function == "lookup" for op in own) == 2  # HardSwish, silu
    assert all(f.result == "uint8" for f in images)
    assert any(f.operands == (IMAGE, PLANE) and f.stored[0] == "uint8" for f in images)  # squeeze-excite's product


def test_a_gate_rounded_on_its_way_is_one_table(tmp_path):
    """x sigmoid(x) with the sigmoid in bytes, of which another node takes the average; bit for bit ONNX Runtime's."""
    d = Drawn()
    d.pair("x", "a", scale=0.05, zero=120)
    d.pair(d.add("Sigmoid", "a", "s"), "g", scale=1 / 255, zero=0)
    d.pair(d.add("Mul", "a g", "m"), "b", scale=0.021, zero=14)
    d.pair(d.add("Relu", "b", "r"), "e", scale=0.03, zero=3)
    d.q(d.add("GlobalAveragePool", "e", "p"), "y", scale=0.01, zero=0)
    d.q("e", "z", scale=0.025, zero=1)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE, outputs=("y", "z"))
    network, session = compiled(path)
    found = operations(network.graph, PaddedPlanes.operators)
    tables = [name for name, op in found.by_output.items() if op.function == "lookup"]
    assert len(tables) == 2  # what the average reads, and z: the gate, the product and the Relu are within both
    assert len({found.by_output[name].inputs[0] for name in tables}) == 1
    feed = draw(network.inputs, np.random.default_rng(3), 4)
    for y, truth in zip(listed(session.run(alone(feed))), whole(str(path), feed)):
        assert truth.std() > 0
        np.testing.assert_array_equal(y, truth)


def test_sums_within_layers_change_no_bit(tmp_path):
    """Of the network as it is compiled, by the kernels that it has."""
    path = quantised(NETWORKS["residual"](tmp_path / "f.onnx"), tmp_path / "q.onnx")
    network, session = compiled(path)
    with sums_apart():
        apart, other = compiled(path)
    assert sum(layer.problem.middle is not None for layer in network.layers.values()) == 2
    assert not any(layer.problem.middle for layer in apart.layers.values())
    for seed in range(3):
        feed = alone(draw(network.inputs, np.random.default_rng(seed)))
        (y,), (truth,) = listed(session.run(feed)), listed(other.run(feed))
        assert y.std() > 0
        np.testing.assert_array_equal(y, truth)


def mixed(path):
    """A quantised layer, a softmax that kerf has no function for, a layer of floats."""
    d = Drawn()
    d.pair("x", "a", scale=0.03, zero=128)
    d.pair(d.add("Conv", f"a {d.weight('w', (8, 6, 3, 3))}", "c"), "b", scale=0.1, zero=128)
    d.pair(d.add("Softmax", "b", "soft", axis=3), "p", scale=0.004, zero=0)
    d.constant("v", d.rng.standard_normal((4, 8, 1, 1)).astype(np.float32))
    d.add("Conv", "p v", "f")
    d.q("f", "y", scale=0.02, zero=128)
    return file(path, d.nodes, d.constants, shape=SHAPE, outputs=("y",))


def test_pieces_of_several_engines_exchange_what_they_have(tmp_path, slow_integers):
    assert checked(mixed(tmp_path / "m.onnx")) == ["kerf", "onnxruntime", "kerf"]


def test_dense_engines_get_the_nodes_of_the_file(tmp_path):
    """Q/DQ around the operators of floats, which they have integer kernels for."""
    network = convert(mixed(tmp_path / "m.onnx"))
    model = onnx_piece.model(network.graph, plain(network, "onnxruntime").pieces[0])
    onnx.checker.check_model(model)
    operators = [n.op_type for n in model.graph.node]
    assert operators.count("Conv") == 2
    weight = next(n for n in model.graph.node if n.op_type == "Conv").input[1]
    assert next(n for n in model.graph.node if weight in n.output).op_type == "DequantizeLinear"
    feed = draw(network.inputs, np.random.default_rng(0))
    np.testing.assert_array_equal(whole(model, feed)[0], whole(str(tmp_path / "m.onnx"), feed)[0])


@pytest.mark.parametrize("batch", [None, 3])
def test_a_dense_engine_alone_gets_the_file_as_it_is(tmp_path, batch):
    """Its constants quantised, too, which kerf's passes fold, and the sizes that were asked for."""
    d = Drawn()
    d.pair("x", "a", scale=0.03, zero=128)
    d.pair(d.add("Conv", f"a {d.weight('w', (8, 6, 3, 3))}", "c"), "b", scale=0.1, zero=128)
    d.constant("k.q", np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1))
    d.dq("k.q", "k", scale=0.2, zero=3, dtype="uint8")
    d.q(d.add("Add", "b k", "s"), "y", scale=0.1, zero=120)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=("n", *SHAPE[1:]))
    network = convert(path, batch=batch)
    by = plain(network, "onnxruntime")
    model, cleaned = onnx_piece.model(by.graph, by.pieces[0]), clean.read(path, batch=batch)
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in cleaned.graph.node]
    assert by.inputs == network.inputs
    feed = draw(network.inputs, np.random.default_rng(0))
    np.testing.assert_array_equal(whole(model, feed)[0], whole(str(path), feed)[0])


def test_layers_without_a_kernel_are_a_dense_engines(tmp_path, monkeypatch):
    """Of a target whose kernels take no integers, the rest stays kerf's."""
    monkeypatch.setattr(pieces, "candidates", lambda kernels, p, target: iter(() if p.x.quantised else (1,)))
    network = pieces.able(convert(mixed(tmp_path / "m.onnx")), TARGET, lambda _: None)
    own = [len(piece.layers) for piece in network.run_by if piece.engine == "kerf"]
    assert own == [1]


OPERATORS = {
    "sum of two scales": lambda d: d.add("Add", f"{d.pair('x', 'a')} {d.pair('x', 'b', scale=0.0213, zero=3)}", "s"),
    "product with a plane": lambda d: d.add(
        "Mul", f"{d.pair('x', 'a')} {d.pair(d.add('GlobalAveragePool', d.pair('x', 'b'), 'm'), 'g', scale=0.01)}", "s"
    ),
    "images joined": lambda d: d.add(
        "Concat", f"{d.pair('x', 'a')} {d.pair('x', 'b', scale=0.0213, zero=3)}", "s", axis=1
    ),
    "one after the other": lambda d: d.pair(d.add("Relu", d.pair("x", "a", scale=0.002), "r"), "s", scale=0.3, zero=7),
    "a scale for each channel": lambda d: d.pair(
        "x", "s", scale=np.linspace(0.01, 0.06, 6), zero=[0, 50, 100, 128, 200, 255], axis=1
    ),
    "a sigmoid": lambda d: d.add("Sigmoid", d.pair("x", "a"), "s"),
    "signed": lambda d: d.add("HardSwish", d.pair("x", "a", zero=-3, dtype="int8"), "s"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_functions_between_integers(tmp_path, slow_integers, name):
    """In front of a quantised layer, whose sums of one input each show what it was given."""
    d = Drawn()
    d.pair(OPERATORS[name](d), "e", scale=0.04, zero=120)
    channels = 12 if name == "images joined" else 6
    d.constant("i.q", np.eye(channels, dtype=np.int8)[:, :, None, None])
    d.dq("i.q", "i", scale=1.0, zero=0, dtype="int8")
    d.q(d.add("Conv", "e i", "c"), "y", scale=0.04, zero=120)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE)
    network, session = compiled(path)
    assert [p.engine for p in network.run_by] == ["kerf"]
    feed = draw(network.inputs, np.random.default_rng(3), 2)
    y, truth = (listed(session.run(alone(feed)))[0], whole(str(path), feed)[0])
    off = np.abs(y.astype(int) - truth.astype(int))
    assert truth.std() > 1
    assert off.max() <= 1
    assert np.mean(off > 0) < 0.01


def test_bytes_in_and_out(tmp_path, slow_integers):
    """Inputs and outputs of the network that are integers, of either sign."""
    for kind, dtype in ((TensorProto.UINT8, "uint8"), (TensorProto.INT8, "int8")):
        d = Drawn()
        d.dq("x", "a", zero=1, dtype=dtype)
        d.q(d.add("Conv", f"a {d.weight('w', (8, 6, 1, 1), scale=0.1)}", "c"), "y", scale=0.011, zero=3, dtype=dtype)
        path = file(tmp_path / f"{dtype}.onnx", d.nodes, d.constants, shape=SHAPE, kind=kind)
        assert checked(path) == ["kerf"]


def test_a_wrong_layer_is_named(tmp_path, slow_integers):
    d = Drawn()
    d.pair("x", "a")
    d.pair(d.add("Conv", f"a {d.weight('w', (8, 6, 1, 1))}", "c"), "b")
    d.add("Conv", f"b {d.weight('v', (4, 8, 1, 1))}", "y")
    network = convert(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE))
    built = build(network, TARGET, RecordBook())
    assert blame(network, built) == []
    for name, layer in network.layers.items():
        broken = {**network.layers, name: replace(layer, bias=layer.bias + 1)}
        (line,) = blame(replace(network, layers=broken), built)
        assert line.startswith(f"{name} (")


def test_a_wrong_sum_is_named(tmp_path, slow_integers):
    d = Drawn()
    d.pair(d.add("Conv", f"{d.pair('x', 'a')} {d.weight('w', (6, 6, 1, 1))}", "c"), "b", scale=0.1013)
    d.pair(d.add("Add", f"b {d.pair('x', 'r', scale=0.0507)}", "s"), "y", scale=0.0419)
    network = convert(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE))
    ((name, layer),) = network.layers.items()
    assert (layer.problem.middle is not None, layer.apart) == (True, 3)
    built = build(network, TARGET, RecordBook())
    assert blame(network, built) == []
    (line,) = blame(replace(network, layers={name: replace(layer, bias=layer.bias + 1)}), built)
    assert line.startswith(f"{name} (")


def test_products_of_inputs_quantised_while_the_network_runs_are_onnx_runtimes(tmp_path):
    d = Drawn()
    d.add("DynamicQuantizeLinear", "x", "q s z")
    d.constant("w", d.rng.integers(-99, 99, (7, 5)).astype(np.int8))
    d.add("Cast", d.add("MatMulInteger", "q w z", "m"), "f", to=TensorProto.FLOAT)
    d.add("Mul", "f s", "y")
    path, said = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=(3, 7)), []
    network = pieces.able(convert(path), TARGET, said.append)
    assert [piece.engine for piece in network.run_by] == ["onnxruntime"]
    assert "m.node: with an input that is quantised while the network runs" in said[0]


def test_no_function_for_other_integers(tmp_path):
    d = Drawn()
    d.pair("x", "a", dtype="uint16")
    d.pair("a", "b", scale=[0.1] * 7, zero=0, axis=3)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE, outputs=("b",), opset=21)
    reasons = {n.output[0]: table.reason(convert(path).graph, n) for n in convert(path).graph.nodes}
    assert reasons["a.q"] == "integers of uint16; kerf's are of 8 bits"
    assert reasons["b.q"] == "a scale for each index of axis 3 of 4 dimensions"
