"""The integer reference against ONNX Runtime, which computes the same layer in floats between its Q/DQ nodes."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.kernels.problem import Problem
from kerf.kernels.reference import conv2d_integer, quantise
from kerf.kernels.tensor_type import F32, TensorType

pytestmark = pytest.mark.quick

U8, I8 = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
X, Y = TensorType("u8", 0.031, 121), TensorType("u8", 0.045, 7)
PROBLEMS = {
    "padded": Problem(2, 6, 9, 7, 8, (3, 3), (2, 1), (1, 1, 1, 1), activation="relu", x=U8, w=I8, y=U8),
    "groups": Problem(1, 6, 5, 5, 6, (3, 3), padding=(1, 1, 1, 1), groups=3, x=U8, w=I8, y=U8),
    "to floats": Problem(1, 16, 4, 4, 8, x=U8, w=I8, y=F32),
}


def between_nodes(p: Problem, x, w, weight_scale, bias):
    """DequantizeLinear, Conv, perhaps Relu and QuantizeLinear, in ONNX Runtime without optimisation."""
    constants = {
        "xs": np.float32(X.scale), "xz": np.uint8(X.zero), "ys": np.float32(Y.scale), "yz": np.uint8(Y.zero),
        "w": w, "ws": weight_scale, "wz": np.zeros(len(w), np.int8), "b": bias,
    }  # fmt: skip
    last = ("QuantizeLinear", ["a", "ys", "yz"]) if p.y.quantised else ("Identity", ["a"])
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["x_"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["w_"], axis=0),
        helper.make_node("Conv", ["x_", "w_", "b"], ["c"], strides=p.stride, pads=p.padding, group=p.groups),
        helper.make_node("Relu" if p.activation == "relu" else "Identity", ["c"], ["a"]),
        helper.make_node(*last, ["y"]),
    ]
    kind = TensorProto.UINT8 if p.y.quantised else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", kind, p.out_shape)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


@pytest.mark.parametrize("p", PROBLEMS.values(), ids=PROBLEMS)
def test_integer_layer(p):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, p.in_shape).astype(np.uint8)
    w = rng.integers(-127, 128, p.weight_shape).astype(np.int8)
    scale, bias = (rng.random(p.out_channels) / 900 + 1e-4).astype(np.float32), rng.standard_normal(p.out_channels)
    types = {"x": X} | ({"y": Y} if p.y.quantised else {})
    y = conv2d_integer(p, x, w, scale, bias.astype(np.float32), types)
    truth = between_nodes(p, x, w, scale, bias.astype(np.float32))
    assert y.dtype == truth.dtype
    assert y.std() > 0
    if p.y.quantised:
        steps = np.abs(y.astype(int) - truth.astype(int))
        assert steps.max() <= 1
        assert np.mean(steps > 0) < 0.002  # their sums are rounded, ours exact
    else:
        np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-5 * np.abs(truth).max())


def test_residual_is_added_before_the_activation():
    p = Problem(1, 4, 3, 3, 4, activation="relu", residual=True, x=U8, w=I8, y=U8, residual_type=U8)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, p.in_shape).astype(np.uint8)
    w, scale, bias = np.zeros(p.weight_shape, np.int8), np.ones(4, np.float32), np.full(4, -0.5, np.float32)
    residual = rng.integers(0, 256, p.out_shape).astype(np.uint8)
    types = {"x": X, "y": TensorType("u8", 0.25, 3), "residual_type": TensorType("u8", 0.5, 100)}
    y = conv2d_integer(p, x, w, scale, bias, types, residual)
    real = np.maximum((residual.astype(float) - 100) * 0.5 - 0.5, 0)
    np.testing.assert_array_equal(y, np.clip(real * 4 + 3, 0, 255).astype(np.uint8))


def test_a_middle_type_is_rounded_and_saturated_to_before_the_residual():
    middle, y = TensorType("i8", 0.5, -28), TensorType("u8", 0.25, 3)
    p = Problem(1, 4, 8, 8, 6, residual=True, activation="relu", x=U8, w=I8, y=U8, middle=middle.unit)
    rng = np.random.default_rng(0)
    x, residual = (rng.integers(0, 256, shape).astype(np.uint8) for shape in (p.in_shape, p.out_shape))
    w, scale = rng.integers(-127, 128, p.weight_shape).astype(np.int8), np.full(6, 0.09, np.float32)
    bias, types = rng.standard_normal(6).astype(np.float32), {"x": X, "middle": middle, "y": y, "residual_type": X}
    alone = replace(p, y=F32, middle=None, residual=False, activation="none")
    m = quantise(conv2d_integer(alone, x, w, scale, bias, {"x": X}), middle)
    assert (m.min(), m.max(), m.dtype) == (-128, 127, np.int8)
    real = (m.astype(np.float32) + 28) * np.float32(0.5) + (residual.astype(np.float32) - 121) * np.float32(0.031)
    got = conv2d_integer(p, x, w, scale, bias, types, residual)
    np.testing.assert_array_equal(got, np.clip(np.rint(np.maximum(real, 0) * 4) + 3, 0, 255))


def test_halves_go_to_even_before_the_zero_point_is_added():
    values = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9])
    got = quantise(values, TensorType("u8", 1.0, 3))
    np.testing.assert_array_equal(got, [3, 5, 5, 3, 1, 255, 0])
