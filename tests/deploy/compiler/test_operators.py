"""Pooling and squeeze-excite products run kerf's functions; what those do not take still runs, TVM's way."""

import numpy as np
import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build, choose
from kerf.deploy.compiler.lower import lower
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import verify
from kerf.deploy.plans import steps
from tests.helpers.onnx_networks import Builder
from tests.helpers.sweeps import sweep

pytestmark = pytest.mark.quick

TARGET = targets.parse("native", 2)


def global_pool(b, x):
    return b.node("GlobalAveragePool", [x], "y"), (2, 8, 1, 1)


def mean(b, x):
    return b.node("ReduceMean", [x, b.integers("axes", [2, 3])], "y", keepdims=0), (2, 8)


def mean_of_rows(b, x):
    return b.node("ReduceMean", [x, b.integers("axes", [3])], "y", keepdims=1), (2, 8, 15, 1)


def gate(b, x):
    g = b.node("GlobalAveragePool", [x], "g")
    return b.node("Mul", [g, x], "y"), (2, 8, 15, 15)  # the factor may come first


def constant_factor(b, x):
    return b.node("Mul", [x, b.constant("two", 2.0)], "y"), (2, 8, 15, 15)


def square(b, x):
    return b.node("Mul", [x, x], "y"), (2, 8, 15, 15)


def pool(b, x):
    return b.node("MaxPool", [x], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), (2, 8, 8, 8)


def pool_over_the_edge(b, x):
    return b.node("MaxPool", [x], "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), (2, 8, 8, 8)


def interpolated(b, x):
    sizes = b.integers("sizes", [2, 8, 29, 40])
    return b.node("Resize", [x, "", "", sizes], "y", mode="linear"), (2, 8, 29, 40)


def interpolated_by_corners(b, x):
    scales = b.constant("scales", [1, 1, 2, 3])
    how = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return b.node("Resize", [x, "", scales], "y", **how), (2, 8, 30, 45)


def interpolated_from_the_edge(b, x):
    scales = b.constant("scales", [1, 1, 1.5, 2.2])
    how = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    return b.node("Resize", [x, "", scales], "y", **how), (2, 8, 22, 33)


def softmax_of_channels(b, x):
    return b.node("Softmax", [x], "y", axis=-3), (2, 8, 15, 15)


def softmax_of_rows(b, x):
    return b.node("Softmax", [x], "y", axis=-1), (2, 8, 15, 15)


FUNCTIONS = {  # of kerf, that compute each
    global_pool: {"mean"},
    mean: {"mean"},
    mean_of_rows: set(),
    gate: {"mean", "scale"},
    constant_factor: set(),  # it goes into the convolution's weights
    square: {"pointwise"},
    pool: {"max_pool"},
    pool_over_the_edge: {"max_pool"},
    interpolated: {"interpolate"},
    interpolated_by_corners: {"interpolate"},
    interpolated_from_the_edge: {"interpolate"},
    softmax_of_channels: {"softmax"},
    softmax_of_rows: set(),
}
OURS = ("mean", "scale", "softmax", "max_pool", "average_pool", "pointwise", "interpolate")


@pytest.mark.parametrize(
    "tail", sweep(FUNCTIONS, quick=(global_pool, gate, constant_factor, pool, softmax_of_channels))
)
def test_operator(tmp_path, tail):
    b = Builder()
    y, shape = tail(b, b.conv("input", "conv", 8, 3, 3))
    network = convert(b.save(tmp_path / "m.onnx", y, (2, 3, 15, 15), shape))
    choices = {name: choose(layer.problem, TARGET, RecordBook()) for name, layer in network.layers.items()}
    module, _ = lower(network, choices, {}, TARGET)
    names = {v.name_hint for v in module.get_global_vars() if "root" not in v.name_hint}
    ours = {name for name in names if name in OURS and is_ours(module[name])}
    assert ours == FUNCTIONS[tail]
    built = build(network, TARGET, RecordBook())
    session = steps.session(network, built, 2)
    verify(session.run, network.path, network.inputs)
    assert np.isfinite(session.run(np.zeros(session.input_shape, np.float32))).all()


ROWS = {  # of (2, 8, 47): how a node is built, what computes it, the result's shape
    "max": (lambda b, x: b.node("MaxPool", [x], "y", kernel_shape=[4], strides=[4]), "max_pool", (2, 8, 11)),
    "max_padded": (
        lambda b, x: b.node("MaxPool", [x], "y", kernel_shape=[3], pads=[1, 0], dilations=[2]),
        "max_pool",
        (2, 8, 44),
    ),
    "average": (
        lambda b, x: b.node("AveragePool", [x], "y", kernel_shape=[5], strides=[2], pads=[2, 2], ceil_mode=1),
        "average_pool",
        (2, 8, 24),
    ),
    "global": (lambda b, x: b.node("GlobalAveragePool", [x], "y"), "mean", (2, 8, 1)),
    "mean": (lambda b, x: b.node("ReduceMean", [x, b.integers("axes", [-1])], "y", keepdims=0), "mean", (2, 8)),
}


@pytest.mark.parametrize("name", ROWS)
def test_pooling_of_rows_is_kerfs_too(tmp_path, name):
    make, function, shape = ROWS[name]
    b = Builder()
    w = b.constant("w", b.rng.standard_normal((8, 3, 4)))
    y = make(b, b.node("Conv", ["input", w], "conv"))
    network = convert(b.save(tmp_path / "m.onnx", y, (2, 3, 50), shape))
    choices = {name: choose(layer.problem, TARGET, RecordBook()) for name, layer in network.layers.items()}
    module, _ = lower(network, choices, {}, TARGET)
    assert function in {v.name_hint for v in module.get_global_vars()}
    session = steps.session(network, build(network, TARGET, RecordBook()), 2)
    verify(session.run, network.path, network.inputs)


def is_ours(func) -> bool:
    """TVM's own functions are written over blocks of loops; kerf's have nothing but the block around them."""
    return str(func).count("T.sblock(") <= 1 and "T.parallel" in str(func)
