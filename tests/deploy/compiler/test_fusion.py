"""Operators of pixels in whole networks: right by ONNX Runtime, nothing left to TVM, and as few passes as may be."""

import math

import numpy as np
import onnx
import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.operators.fusion import operations
from kerf.deploy.frontend.operators.table import reason
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import verify
from kerf.deploy.plans import steps
from kerf.kernels.cpu.form import PaddedPlanes
from tests.helpers.onnx_networks import Builder

pytestmark = pytest.mark.quick

TARGET = targets.parse("native", 1)


def norm(b, x, channels):
    name = f"bn{len(b.nodes)}"
    given = [b.constant(f"{name}.{k}", b.rng.uniform(0.5, 1.5, channels)) for k in ("gamma", "beta", "mean", "var")]
    return b.node("BatchNormalization", [x, *given], name)


def node(b, op, *inputs, **attributes):
    return b.node(op, list(inputs), f"{op}{len(b.nodes)}", **attributes)


def number(b, value):
    return b.constant(f"c{len(b.constants)}", value)


def dense_block(b, x):
    """Joined images, normed and activated, as DenseNet has them: one pass each."""
    y = b.conv(x, "second", 4, 8, 3)
    joined = node(b, "Relu", norm(b, node(b, "Concat", x, y, axis=1), 12))
    z = b.conv(joined, "third", 5, 12)
    return node(b, "Elu", norm(b, node(b, "Concat", x, y, z, axis=1), 17)), 17, 2


def gelu_of_a_norm(b, x):
    h = norm(b, node(b, "Relu", x), 8)
    e = node(b, "Add", node(b, "Erf", node(b, "Div", h, number(b, math.sqrt(2)))), number(b, 1))
    return node(b, "Mul", node(b, "Mul", h, e), number(b, 0.5)), 8, 1


def arithmetic(b, x):
    y = b.conv("input", "other", 8, 3, 3)
    s = node(b, "Max", node(b, "Sub", x, y), node(b, "Mul", y, number(b, 0.3)))
    s = node(b, "PRelu", node(b, "Add", s, number(b, 0.5)), number(b, b.rng.uniform(-1, 1, (8, 1, 1))))
    s = node(b, "HardSigmoid", node(b, "Sub", number(b, 1.0), s), alpha=0.3, beta=0.4)
    return node(b, "Div", s, node(b, "Add", node(b, "Sigmoid", y), number(b, 1.0))), 8, None


def read_twice(b, x):
    """What another node reads is computed once, and kept."""
    h = norm(b, node(b, "Relu", x), 8)
    product = node(b, "Mul", node(b, "Tanh", h), number(b, 2))  # takes the tanh into itself before the next is seen
    return node(b, "Mul", product, node(b, "Sub", h, number(b, 2))), 8, 2


def shuffled(b, x):
    """ShuffleNet: half the channels through a layer, joined, in another order; then enlarged."""
    b.nodes.append(onnx.helper.make_node("Split", [x], ["left", "right"], axis=1, num_outputs=2))
    joined = node(b, "Concat", "left", b.conv("right", "half", 4, 4), axis=1)
    apart = node(b, "Reshape", joined, b.integers("apart", [2, 2, 4, 7, 11]))
    turned = node(b, "Transpose", apart, perm=[0, 2, 1, 3, 4])
    x = node(b, "Reshape", turned, b.integers("together", [2, 8, 7, 11]))
    return node(b, "Slice", x, *(b.integers(k, [v]) for k, v in zip("seat", (-7, 99, 1, 3)))), 3, None


def enlarged(b, x):
    scales = b.constant("scales", [1, 1, 2, 3])
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    x = node(b, "Resize", x, "", scales, mode="nearest", **how)
    return node(b, "MaxPool", x, kernel_shape=[2, 3], strides=[2, 3]), 8, None


def pixels_shuffled(b, x):
    x = node(b, "DepthToSpace", x, blocksize=2, mode="CRD")
    x = node(b, "DepthToSpace", b.conv(x, "wide", 8, 2, 1), blocksize=2, mode="DCR")
    return node(b, "MaxPool", x, kernel_shape=[4, 4], strides=[4, 4]), 2, None


TAILS = {
    f.__name__: f for f in (dense_block, gelu_of_a_norm, arithmetic, read_twice, shuffled, enlarged, pixels_shuffled)
}


@pytest.mark.parametrize("key", TAILS)
def test_network(tmp_path, key):
    b = Builder()
    y, channels, passes = TAILS[key](b, b.conv("input", "first", 8, 3, 3))
    shape = (2, 3, 7, 11)
    network = convert(b.save(tmp_path / "m.onnx", y, shape, (2, channels, *shape[2:])))
    assert {reason(network.graph, n) for n in network.graph.nodes} == {None}
    found = operations(network.graph, PaddedPlanes.operators).by_output
    assert passes is None or len(found) == passes
    built = build(network, TARGET, RecordBook())
    verify(steps.session(network, built, 1).run, network.path, network.inputs)


@pytest.mark.parametrize(
    ("attributes", "out"),
    [
        ({"kernel_shape": [2, 2], "strides": [2, 2]}, (3, 5)),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, (4, 6)),
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, (7, 11)),
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, (7, 11)),
        ({"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 1, 2, 0]}, (4, 4)),
    ],
)
def test_average_pooling(tmp_path, attributes, out):
    b = Builder()
    y = b.node("AveragePool", [b.conv("input", "first", 8, 3, 3)], "y", **attributes)
    network = convert(b.save(tmp_path / "m.onnx", y, (1, 3, 7, 11), (1, 8, *out)))
    assert reason(network.graph, network.graph.nodes[-1]) is None
    built = build(network, TARGET, RecordBook())
    session = steps.session(network, built, 1)
    verify(session.run, network.path, network.inputs)
    assert np.isfinite(session.run(np.zeros(session.input_shape, np.float32))).all()
