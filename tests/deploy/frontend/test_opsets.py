"""Files of old opsets: what changed between them computes what it did, in the operators of today."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from kerf.deploy.frontend.opsets import OPSET
from tests.helpers.onnx_files import file, ints, node, same

pytestmark = pytest.mark.quick

f = np.float32
SHAPE = (1, 4, 9, 9)
DOUBLE, UNEVEN, SMALLER = f([1, 1, 2, 2]), f([1, 1, 1.5, 2.5]), f([1, 1, 0.5, 0.7])
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceSumSquare")

# (first opset, last opset, nodes x -> y, constants): the forms that an operator had before opset 13
CASES = {
    "Upsample with an attribute": (7, 8, [node("Upsample", "x", "y", scales=[1.0, 1.0, 2.0, 3.0])], {}),
    "linear Upsample with one": (7, 8, [node("Upsample", "x", "y", scales=[1.0, 1.0, 2.0, 2.0], mode="linear")], {}),
    "Upsample": (9, 9, [node("Upsample", "x s", "y")], {"s": DOUBLE}),
    "linear Upsample": (9, 9, [node("Upsample", "x s", "y", mode="linear")], {"s": DOUBLE}),
    "Upsample by no whole number": (9, 9, [node("Upsample", "x s", "y")], {"s": UNEVEN}),
    "first Resize": (10, 10, [node("Resize", "x s", "y")], {"s": UNEVEN}),
    "first linear Resize": (10, 10, [node("Resize", "x s", "y", mode="linear")], {"s": UNEVEN}),
    "first linear Resize, smaller": (10, 10, [node("Resize", "x s", "y", mode="linear")], {"s": SMALLER}),
    "Resize": (11, 12, [node("Resize", "x r s", "y", mode="linear")], {"s": DOUBLE, "r": f([])}),
    "Resize to sizes": (
        11,
        12,
        [node("Resize", "x r s z", "y", mode="linear", coordinate_transformation_mode="pytorch_half_pixel")],
        {"s": f([]), "r": f([]), **ints(z=[1, 4, 5, 20])},
    ),
    "cubic Resize": (
        11,
        12,
        [node("Resize", "x r s", "y", mode="cubic", coordinate_transformation_mode="align_corners")],
        {"s": DOUBLE, "r": f([])},
    ),
    **{f"Softmax of axis {axis}": (7, 12, [node("Softmax", "x", "y", axis=axis)], {}) for axis in range(4)},
    **{f"LogSoftmax of axis {axis}": (7, 12, [node("LogSoftmax", "x", "y", axis=axis)], {}) for axis in (1, 3)},
    "Softmax of the last axis": (11, 12, [node("Softmax", "x", "y", axis=-1)], {}),
    "Clip with attributes": (7, 10, [node("Clip", "x", "y", min=0.0, max=6.0)], {}),
    "Clip from below": (7, 10, [node("Clip", "x", "y", min=0.0)], {}),
    "Pad with attributes": (7, 10, [node("Pad", "x", "y", pads=[0, 0, 1, 1, 0, 0, 2, 1], value=1.5)], {}),
    "reflecting Pad": (7, 10, [node("Pad", "x", "y", pads=[0, 0, 1, 1, 0, 0, 2, 1], mode="reflect")], {}),
    "Slice with attributes": (7, 9, [node("Slice", "x", "y", starts=[0, 1], ends=[1, 3], axes=[0, 1])], {}),
    "Slice": (10, 12, [node("Slice", "x s e a t", "y")], ints(s=[1], e=[-1], a=[2], t=[2])),
    "Split": (7, 12, [node("Split", "x", "a y", axis=1, split=[1, 3])], {}),
    "Squeeze": (7, 12, [node("Squeeze", "x", "y", axes=[0])], {}),
    "Squeeze of all": (7, 12, [node("Squeeze", "x", "y")], {}),
    "Unsqueeze": (7, 12, [node("Unsqueeze", "x", "y", axes=[0, 2])], {}),
    **{op: (7, 12, [node(op, "x", "y", axes=[2, 3], keepdims=0)], {}) for op in REDUCTIONS},
    "TopK with an attribute": (7, 9, [node("TopK", "x", "y i", k=3, axis=-1)], {}),
    "TopK": (10, 12, [node("TopK", "x k", "y i", axis=1)], ints(k=[2])),
    "Dropout": (7, 11, [node("Dropout", "x", "y", ratio=0.5)], {}),
    "Dropout with a ratio": (12, 12, [node("Dropout", "x r", "y")], {"r": f(0.3)}),
    "BatchNormalization": (7, 12, [node("BatchNormalization", "x g g g g", "y")], {"g": f([1, 2, 3, 4])}),
    "PRelu": (7, 12, [node("PRelu", "x s", "y")], {"s": f([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1)}),
    "MaxPool": (7, 12, [node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")], {}),
    "AveragePool": (7, 12, [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])], {}),
    "Conv": (7, 12, [node("Conv", "x w", "y", auto_pad="SAME_UPPER")], {"w": np.ones((5, 4, 3, 3), f)}),
    "ConvTranspose": (7, 12, [node("ConvTranspose", "x w", "y", strides=[2, 2])], {"w": np.ones((4, 5, 3, 3), f)}),
    "Flatten and Gemm": (
        7,
        12,
        [node("Flatten", "x", "flat"), node("Gemm", "flat w b", "y", transB=1)],
        {"w": np.ones((5, 324), f), "b": np.ones(5, f)},
    ),
    "Cast": (7, 12, [node("Cast", "x", "y", to=TensorProto.INT32)], {}),
    "Greater": (7, 12, [node("Greater", "x z", "y")], {"z": f(0)}),
    "Where": (9, 12, [node("Greater", "x z", "b"), node("Where", "b x z", "y")], {"z": f(0)}),
    "Expand": (8, 12, [node("Expand", "x r", "y")], ints(r=[2, 4, 9, 9])),
    "Sum": (7, 12, [node("Sum", "x x x", "y")], {}),
    "DepthToSpace": (7, 12, [node("DepthToSpace", "x", "y", blocksize=2)], {}),
    "InstanceNormalization": (7, 12, [node("InstanceNormalization", "x g g", "y")], {"g": f([1, 2, 3, 4])}),
    "GatherND": (11, 12, [node("GatherND", "x i", "y")], ints(i=[[0, 1]])),
}
LEFT = {  # what ONNX's converter changes the meaning of
    "first Resize, smaller": (10, 10, [node("Resize", "x s", "y")], {"s": SMALLER}),
    "Hardmax": (7, 12, [node("Hardmax", "x", "y", axis=1)], {}),
}


@pytest.mark.parametrize("case", [*CASES, *LEFT])
def test_a_file_of_an_old_opset_computes_what_it_did(tmp_path, case):
    first, last, nodes, constants = {**CASES, **LEFT}[case]
    for opset in {first, last}:
        model = same(file(tmp_path / "m.onnx", nodes, constants, opset, SHAPE))
        assert [o.version for o in model.opset_import] == [OPSET if case in CASES else opset]


@pytest.mark.parametrize("opset", [13, 15, 18, 20, 22, 24])
def test_newer_files_keep_their_opset(tmp_path, opset):
    nodes = [node("Relu", "x", "r"), node("ReduceSum", "r axes", "y")]
    model = same(file(tmp_path / "m.onnx", nodes, ints(axes=[2]), opset, SHAPE))
    assert [o.version for o in model.opset_import] == [opset]


def test_large_weights_are_the_same_after_the_conversion(tmp_path):
    big = np.random.default_rng(0).standard_normal((64, 4, 3, 3)).astype(f)
    nodes = [node("Conv", "x w", "c"), node("Clip", "c", "y", min=0.0)]
    model = same(file(tmp_path / "m.onnx", nodes, {"w": big}, 9, SHAPE))
    assert [n.op_type for n in model.graph.node] == ["Conv", "Clip"]
    assert {t.name for t in model.graph.initializer} >= {"w"}


@pytest.mark.parametrize(("dtype", "opset"), [("uint8", 17), ("int8", 17), ("int16", 21), ("uint16", 21)])
def test_quantisers_of_onnx_runtime_are_onnxs_own(tmp_path, dtype, opset):
    constants = {"s": f(0.01), "z": np.array(3, dtype), "w": np.arange(8, dtype=dtype).reshape(2, 4, 1, 1)}
    constants |= {"t": f([0.1, 0.2]), "u": np.array([1, 2], dtype)}
    own = dict(domain="com.microsoft")
    nodes = [node("QuantizeLinear", "x s z", "q", **own), node("DequantizeLinear", "q s z", "a", **own)]
    nodes += [node("DequantizeLinear", "w t u", "v", axis=0, **own), node("Conv", "a v", "y")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = same(file(tmp_path / "m.onnx", nodes, constants, shape=SHAPE, opset_imports=imports))
    assert {n.domain for n in model.graph.node} == {""}
    assert next(o.version for o in model.opset_import if not o.domain) == opset
