"""The f32 form of a quantised file: nothing rounded, what a zero point of 0 clips still clipped."""

from collections import Counter

import numpy as np
import onnx
import pytest

import kerf
from kerf.deploy.frontend import clean
from kerf.deploy.quantise.dequantised import dequantised
from tests.helpers.onnx_files import file, node, session
from tests.helpers.onnx_networks import mobile

pytestmark = pytest.mark.quick

STEPS = {"s": np.float32(0.1), "zero": np.uint8(0), "middle": np.uint8(128)}


def of(path, nodes, constants, shape=(1, 4), **more):
    return dequantised(clean.read(file(path, nodes, STEPS | constants, shape=shape, **more)))


def test_a_quantised_network_gets_its_function_back(tmp_path):
    path, x = mobile(tmp_path / "m.onnx"), np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    model = dequantised(clean.read(kerf.quantise(path, tmp_path / "q.onnx", tmp_path / "x.npy").path))
    onnx.checker.check_model(model, full_check=True)
    kinds = Counter(n.op_type for n in model.graph.node)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
    assert kinds["Clip"] == 3, "of the stem's Clip and two Relu; what comes behind is positive as it is"
    assert {t.data_type for t in model.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    (truth,), (found,) = (session(m).run(None, {"input": x[:1]}) for m in (str(path), model))
    np.testing.assert_allclose(found, truth, atol=0.01 * np.abs(truth).max())


@pytest.mark.parametrize(("zero", "least"), [("zero", 0.0), ("middle", -3.0)])
def test_what_is_negative_is_clipped_where_no_integer_stands_for_it(tmp_path, zero, least):
    nodes = [node("QuantizeLinear", f"x s {zero}", "q"), node("DequantizeLinear", f"q s {zero}", "y")]
    model = of(tmp_path / "m.onnx", nodes, {})
    (y,) = session(model).run(None, {"x": np.array([[-3, 0.04, 1.234, 7]], np.float32)})
    np.testing.assert_allclose(y, [[least, 0.04, 1.234, 7]], rtol=1e-6)


def test_constants_become_floats_along_their_axis(tmp_path):
    w, scales = np.arange(8, dtype=np.int8).reshape(4, 2), np.array([0.5, 2], np.float32)
    nodes = [node("DequantizeLinear", "w scales", "wf", axis=1), node("MatMul", "x wf", "y")]
    (y,) = session(of(tmp_path / "m.onnx", nodes, {"w": w, "scales": scales})).run(
        None, {"x": np.eye(4, dtype="f")[:1]}
    )
    np.testing.assert_array_equal(y, [[0, 2]])


def test_scales_that_are_computed_have_no_such_form(tmp_path):
    nodes = [node("ReduceMax", "x", "top", keepdims=0), node("QuantizeLinear", "x top zero", "q")]
    nodes += [node("DequantizeLinear", "q top zero", "y")]
    with pytest.raises(kerf.Unsupported, match="its scale is computed"):
        of(tmp_path / "m.onnx", nodes, {})


@pytest.mark.parametrize("move", ["Identity", "Flatten"])
def test_inputs_and_outputs_that_are_integers_stay_so(tmp_path, move):
    nodes = [node(move, "x", "i"), node("DequantizeLinear", "i s middle", "a")]
    nodes += [node("QuantizeLinear", "a s middle", "q"), node("DequantizeLinear", "q s middle", "b")]
    nodes += [node("Relu", "b", "r"), node("QuantizeLinear", "r s zero", "p"), node(move, "p", "y")]
    model = of(tmp_path / "m.onnx", nodes, {}, kind=onnx.TensorProto.UINT8)
    assert [n.op_type for n in model.graph.node].count("QuantizeLinear") == 1, "that of the output"
    (y,) = session(model).run(None, {"x": np.array([[0, 127, 128, 200]], np.uint8)})
    np.testing.assert_array_equal(y, np.array([[0, 0, 0, 72]], np.uint8))
