"""What a quantised network may differ by, and what is still a mistake."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from kerf.deploy.frontend.onnx_graph import Graph, Value
from kerf.deploy.measure import quantised_reference
from kerf.deploy.measure.samples import draw
from kerf.deploy.measure.verify import dense_error, verify
from kerf.errors import Mismatch
from tests.helpers.interpreted import whole
from tests.helpers.onnx_files import file, node
from tests.helpers.onnx_networks import mobile
from tests.helpers.quantised_files import NETWORKS, quantised
from tests.helpers.quantised_nodes import Drawn

pytestmark = pytest.mark.quick

SHAPE = (1, 3, 32, 32)
INPUT = [Value("input", "float32", SHAPE)]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    return quantised(NETWORKS["residual"](folder / "f.onnx"), folder / "q.onnx", form="qoperator")


def off_by(path, error):
    """A run of the file whose outputs are wrong by this many steps of theirs."""
    reference = quantised_reference.of(path)
    name = reference.model.graph.output[0].name

    def run(x):
        (y,) = whole(reference.model, {"input": x})
        return y + error * reference.step(name, y) * np.abs(y).max()

    return run


def test_a_step_is_allowed_and_several_are_not(network):
    assert verify(off_by(network, 0), network, INPUT, dense=False)["max_relative_error"] == 0
    assert verify(off_by(network, 0.9995), network, INPUT, dense=False)["max_relative_error"] > 1e-3
    with pytest.raises(Mismatch, match="differs from ONNX Runtime by"):
        verify(off_by(network, 8), network, INPUT, dense=False)


def test_what_a_dense_engine_differs_by_is_allowed_to_it(network):
    """On CPUs without VNNI ONNX Runtime's integer kernels saturate sums."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    assert verify(lambda x: session.run(None, {"input": x})[0], network, INPUT)["verified"]
    assert dense_error(network, draw(INPUT, np.random.default_rng(0))) > 0


def test_floats_are_compared_as_ever(tmp_path):
    path = mobile(tmp_path / "m.onnx")
    assert quantised_reference.of(path) is None
    assert dense_error(path, {}) == 0
    (y,) = whole(str(path), {"input": np.zeros(SHAPE, np.float32)})
    with pytest.raises(Mismatch):
        verify(lambda x: y, path, INPUT)


def test_the_network_without_quantising_keeps_its_weights(tmp_path):
    path = quantised(NETWORKS["joined"](tmp_path / "f.onnx"), tmp_path / "q.onnx", activations="i8")
    reference = quantised_reference.of(path)
    left = [n.op_type for n in reference.floats.graph.node]
    assert "QuantizeLinear" not in left
    feed = draw(INPUT, np.random.default_rng(0))
    (floats,), (first,), (exact,) = (
        whole(m, feed) for m in (reference.floats, str(tmp_path / "f.onnx"), reference.model)
    )
    largest = np.abs(first).max()
    assert 0 < np.abs(floats - first).max() < np.abs(exact - first).max() < 0.1 * largest


def test_bytes_that_are_numbers_are_drawn_as_such(tmp_path):
    d = Drawn()
    d.q(d.dq("x", "f"), "y", scale=0.02)
    model = onnx.load(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=(1, 64), kind=TensorProto.UINT8))
    value = Graph(model).described("x")
    assert value.any_byte
    assert draw([value], np.random.default_rng(0))["x"].max() > 200
    d = Drawn()
    d.constant("table", np.eye(4, dtype=np.float32))
    d.add("Cast", "x", "i", to=TensorProto.INT64)
    d.add("Gather", "table i", "y")
    model = onnx.load(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=(1, 64), kind=TensorProto.UINT8))
    assert not Graph(model).described("x").any_byte


def test_steps_of_integers_given_out(tmp_path):
    d = Drawn()
    d.add("Sigmoid", d.pair("x", "a"), "s")
    d.q("s", "y", scale=0.004, zero=0)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=(1, 300))
    inputs = [Value("x", "float32", (1, 300))]
    reference = quantised_reference.of(path)

    def run(x, off):
        return whole(reference.model, {"x": x})[0] + np.uint8(off)

    assert verify(lambda x: run(x, 1), path, inputs, dense=False)["max_abs_error"] == 1
    with pytest.raises(Mismatch):
        verify(lambda x: run(x, 9), path, inputs, dense=False)


def test_steps_of_float16_are_steps_too(tmp_path):
    half = np.float16
    stored = {"s": half(0.5), "z": np.uint8(128), "w.q": np.ones((4, 6, 1, 1), np.int8), "w.s": np.full(4, 0.25, half)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "a")]
    nodes += [node("DequantizeLinear", "w.q w.s", "w", axis=0), node("Conv", "a w", "c")]
    nodes += [node("QuantizeLinear", "c s z", "p"), node("DequantizeLinear", "p s z", "y")]
    kind = TensorProto.FLOAT16
    path = file(tmp_path / "m.onnx", nodes, stored, opset=21, shape=(1, 6, 3, 3), kind=kind)
    reference = quantised_reference.of(path)
    assert reference.step("y", np.full(3, 2, half)) == pytest.approx(0.25, rel=0.01)
    assert "QuantizeLinear" not in {n.op_type for n in reference.floats.graph.node}
    x = np.random.default_rng(0).standard_normal((1, 6, 3, 3)).astype(half)
    assert {whole(model, {"x": x})[0].dtype for model in (reference.model, reference.floats)} == {np.dtype(half)}
