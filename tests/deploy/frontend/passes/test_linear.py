"""What is read of Q/DQ nodes, against ONNX Runtime, and which of them are refused in one line."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.linear import steps, stored
from kerf.errors import BadInput
from tests.helpers.interpreted import whole
from tests.helpers.onnx_files import file, node

pytestmark = pytest.mark.quick

F32 = np.float32


def constants_of(q, scale, zero, opset=21, **attributes):
    """A model with DequantizeLinear of a constant, "w"."""
    stored = {"q": q, "s": np.asarray(scale, F32), "z": zero}
    tensors = [
        t if isinstance(t, TensorProto) else numpy_helper.from_array(np.asarray(t), n) for n, t in stored.items()
    ]
    made = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], "dequantise", **attributes)
    graph = helper.make_graph([made], "g", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


RNG = np.random.default_rng(0)
Q8 = RNG.integers(-128, 128, (4, 3, 2)).astype(np.int8)
INT4 = helper.make_tensor("q", TensorProto.INT4, (3,), [-8, 0, 7])
CASES = {
    "one scale": constants_of(Q8, 0.1, np.int8(-3)),
    "by the first axis": constants_of(Q8, [0.1, 0.2, 0.3, 0.4], np.int8([1, 2, 3, 4]), axis=0),
    "by the last axis": constants_of(Q8, [0.1, 0.2], np.int8([0, 9]), axis=-1),
    "by blocks": constants_of(
        Q8[:, :, 0], RNG.uniform(0.1, 1, (4, 2)), np.zeros((4, 2), np.int8), axis=1, block_size=2
    ),
    "int32": constants_of(RNG.integers(-(2**30), 2**30, 5).astype(np.int32), 1e-6, np.int32(0)),
    "uint16": constants_of(RNG.integers(0, 2**16, 5).astype(np.uint16), 1e-3, np.uint16(400)),
    "int4": constants_of(INT4, 0.5, helper.make_tensor("z", TensorProto.INT4, (), [1])),
}  # fmt: skip


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_constants_have_the_numbers_of_onnx_runtime(model):
    graph = Graph(model)
    np.testing.assert_allclose(stored(graph, "w"), whole(model, {})[0], rtol=2e-7)


def test_halves_are_quantised_to_even():
    model = constants_of(Q8, 2.0, np.int8(-3))
    found = steps(Graph(model), Graph(model).nodes[0])
    np.testing.assert_array_equal(found.quantise(F32([1, 3, 5, 999, -999])), [-3, -1, -1, 127, -128])


def network(tmp_path, scale=0.1, weight_scale=0.1, **attributes):
    stored = {
        "s": np.asarray(scale, F32), "z": np.uint8(3), "ws": np.asarray(weight_scale, F32),
        "w": RNG.integers(-9, 9, (4, 3, 1, 1)).astype(np.int8), "wz": np.zeros(np.shape(weight_scale), np.int8),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w ws wz", "f", **attributes),
        node("Conv", "d f", "y"),
    ]
    return file(tmp_path / "m.onnx", nodes, stored, shape=(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scale": np.nan}, "QuantizeLinear 'q.node' has the scale nan; expected positive numbers"),
        ({"scale": 0.0}, "QuantizeLinear 'q.node' has the scale 0.0; expected positive numbers"),
        ({"scale": -1.0}, "the scale -1.0"),
        ({"scale": np.inf}, "the scale inf"),
        ({"weight_scale": [0.1] * 3, "axis": 0}, "DequantizeLinear 'f.node' has 3 scales for axis 0 of 4x3x1x1"),
        ({"weight_scale": [0.1] * 3 + [np.nan], "axis": 0}, "DequantizeLinear 'f.node' has the scale nan"),
    ],
)
def test_wrong_numbers_are_refused_by_name(tmp_path, wrong, said):
    with pytest.raises(BadInput, match=said) as error:
        convert(network(tmp_path, **wrong))
    assert "\n" not in str(error.value)


def test_a_zero_point_of_another_type_is_refused(tmp_path):
    path = network(tmp_path)
    model = onnx.load(path)
    next(t for t in model.graph.initializer if t.name == "wz").CopyFrom(numpy_helper.from_array(np.uint8(0), "wz"))
    onnx.save(model, path)
    said = r"node name: f.node\): x_zero_point has inconsistent type"
    with pytest.raises(BadInput, match=said):
        convert(path)
