"""Operators of integers as Q/DQ nodes: each against ONNX Runtime's own, within a step."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.qlinear import FORMS, expand_qlinear
from tests.helpers.interpreted import whole

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
A, B, Y = (0.04, 100), (0.003, 0), (0.05, 120)  # scales and zero points


def numbers(prefix, pair, kind=np.uint8):
    return {f"{prefix}s": np.float32(pair[0]), f"{prefix}z": np.array(pair[1], kind)}


def model(
    op, inputs, constants, out, shape=(1, 4, 6, 6), others=(), opset=17, kind=TensorProto.UINT8, said=None, **attributes
):
    domain = "" if op in ("QLinearConv", "QLinearMatMul") else "com.microsoft"
    names = inputs.split(",")
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], "one", domain=domain, **attributes, **(said or {}))], "g",
        [helper.make_tensor_value_info(n, TensorProto.UINT8, shape) for n in ("x", *others)],
        [helper.make_tensor_value_info("y", kind, out)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in names],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


AY = numbers("a", A) | numbers("y", Y)
W = numbers("b", ((0.002, 0.003, 0.001, 0.004, 0.002), [0] * 5), np.int8)
SMALL = RNG.integers(-40, 40, (5, 4, 3, 3)).astype(np.int8)  # sums of two products stay below 2^15
COLUMNS = RNG.integers(-40, 40, (8, 5)).astype(np.int8)
BIAS = RNG.integers(-3000, 3000, 5).astype(np.int32)
CASES = {
    "QLinearConv": model(
        "QLinearConv", "x,as,az,w,bs,bz,ys,yz,c", AY | W | {"w": SMALL, "c": BIAS}, (1, 5, 6, 6), pads=[1] * 4
    ),
    "QLinearMatMul": model("QLinearMatMul", "x,as,az,w,bs,bz,ys,yz", AY | W | {"w": COLUMNS}, (3, 5), shape=(3, 8)),
    "QGemm": model("QGemm", "x,as,az,w,bs,bz,c,ys,yz", AY | W | {"w": COLUMNS, "c": BIAS}, (3, 5), shape=(3, 8)),
    "QGemm of rows": model(
        "QGemm", "x,as,az,w,bs,bz,c,ys,yz", AY | W | {"w": COLUMNS.T.copy(), "c": BIAS}, (3, 5), shape=(3, 8), transB=1
    ),
    "QGemm to floats": model(
        "QGemm", "x,as,az,w,bs,bz,c", AY | W | {"w": COLUMNS, "c": BIAS}, (3, 5), shape=(3, 8), kind=TensorProto.FLOAT
    ),
    "QLinearAdd": model("QLinearAdd", "x,as,az,z,bs,bz,ys,yz", AY | numbers("b", B), (1, 4, 6, 6), others=("z",)),
    "QLinearMul": model("QLinearMul", "x,as,az,z,bs,bz,ys,yz", AY | numbers("b", B), (1, 4, 6, 6), others=("z",)),
    "QLinearSigmoid": model("QLinearSigmoid", "x,as,az,ys,yz", AY | numbers("y", (0.004, 0)), (1, 4, 6, 6)),
    "QLinearLeakyRelu": model("QLinearLeakyRelu", "x,as,az,ys,yz", AY, (1, 4, 6, 6), alpha=0.1),
    "QLinearGlobalAveragePool": model("QLinearGlobalAveragePool", "x,as,az,ys,yz", AY, (1, 4, 1, 1)),
    "QLinearAveragePool": model(
        "QLinearAveragePool", "x,as,az,ys,yz", AY, (1, 4, 5, 5), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 0, 0]
    ),
    "QLinearSoftmax": model(
        "QLinearSoftmax", "x,as,az,ys,yz", AY | numbers("y", (0.004, 0)), (1, 4, 6, 6), axis=1, said={"opset": 13}
    ),
    "QLinearConcat": model(
        "QLinearConcat", "ys,yz,x,as,az,z,bs,bz", AY | numbers("b", B), (1, 8, 6, 6), others=("z",), axis=1
    ),
}


@pytest.mark.parametrize("file", CASES.values(), ids=CASES)
def test_within_a_step_of_onnx_runtimes(file):
    graph = Graph(file)
    assert expand_qlinear(graph)
    graph.infer()
    made = graph.model()
    assert not {n.op_type for n in made.graph.node} & set(FORMS)
    onnx.checker.check_model(made)
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in file.graph.input}
    feed = {n: RNG.integers(0, 256, s).astype(np.uint8) for n, s in sizes.items()}
    (truth,), (y,) = whole(file, feed), whole(made, feed)
    assert y.dtype == truth.dtype
    if truth.dtype == np.float32:
        np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-4)
    else:
        off = np.abs(y.astype(int) - truth.astype(int))
        assert off.max() <= 1
        assert truth.std() > 2


def test_every_operator_is_tried():
    assert {n.op_type for file in CASES.values() for n in file.graph.node} == set(FORMS)


def test_what_cannot_be_said_so_stays():
    """Before opset 13 no scale by channel, and another softmax; a zero point that is left out; channels last."""
    conv = AY | W | {"w": SMALL, "c": BIAS}
    old = model("QLinearConv", "x,as,az,w,bs,bz,ys,yz,c", conv, (1, 5, 6, 6), pads=[1] * 4, opset=11)
    none = model("QLinearSigmoid", "x,as,,ys,yz", AY, (1, 4, 6, 6))
    last = model("QLinearGlobalAveragePool", "x,as,az,ys,yz", AY, (1, 1, 1, 6), channels_last=1)
    softmax = model("QLinearSoftmax", "x,as,az,ys,yz", AY, (1, 4, 6, 6), axis=1, said={"opset": 11})
    for file in (old, none, last, softmax):
        graph = Graph(file)
        assert not expand_qlinear(graph)
        assert list(graph.nodes) == list(file.graph.node)
