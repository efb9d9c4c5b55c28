"""Types that ONNX Runtime's Python takes no arrays of: the bytes go in and come out as they are."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from kerf.deploy.runtime import rare_types
from kerf.deploy.runtime.dense_engine import onnxruntime_session
from kerf.errors import Unsupported

pytestmark = pytest.mark.quick


def session(number, shape):
    """y and z are x."""
    values = [helper.make_tensor_value_info(name, number, shape) for name in "xyz"]
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in "yz"]
    model = helper.make_model(
        helper.make_graph(nodes, "same", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    return onnxruntime_session(model.SerializeToString(), 1)


@pytest.mark.parametrize("dtype", rare_types.NUMBERS, ids=str)
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)])
def test_bytes_are_the_same(dtype, shape):
    x = np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    opened = session(rare_types.element_type(dtype), shape)
    assert rare_types.rare(opened)
    for y in rare_types.runner(opened)(["z", "y"], {"x": x}):
        assert (y.dtype, y.shape, y.tobytes()) == (x.dtype, x.shape, x.tobytes())


def test_other_types_go_as_they_did():
    opened = session(TensorProto.FLOAT, (2,))
    assert rare_types.runner(opened) == opened.run
    assert rare_types.element_type(np.dtype(np.float32)) == np.float32
    assert rare_types.rounding(np.dtype(np.float32)) == 0
    assert rare_types.rounding(np.dtype(ml_dtypes.bfloat16)) == 2**-7


def test_packed_numbers_are_refused():
    packed = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x", type="tensor(uint4)")], get_outputs=list)
    with pytest.raises(Unsupported, match=r"'x' is a tensor\(uint4\)"):
        rare_types.rare(packed)
