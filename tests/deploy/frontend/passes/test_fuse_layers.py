"""Products of tokens and convolutions of one dimension are layers, and keep the shapes that the file gives them."""

import math

import numpy as np
import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import verify
from kerf.deploy.plans import steps
from tests.helpers.onnx_networks import Builder

pytestmark = pytest.mark.quick
TARGET = targets.parse("native", 1)


def weight(b: Builder, name: str, inputs: int, outputs: int) -> str:
    """(inputs, outputs), half of its blocks of four outputs zero."""
    w = b.rng.standard_normal((inputs, outputs // 4, 4)) * (b.rng.permutation(inputs * outputs // 4) % 2).reshape(
        inputs, -1, 1
    )
    return b.constant(name, w.reshape(inputs, outputs))


def mixer(b: Builder, x: str, channels: int) -> str:
    """A hidden product with its bias first in the sum, one back with the residual behind it."""
    h = b.node("MatMul", [x, weight(b, "w1", channels, 32)], "m1")
    h = b.node("Relu", [b.node("Add", [b.constant("b1", b.rng.standard_normal(32)), h], "hidden")], "relu")
    h = b.node("MatMul", [h, weight(b, "w2", 32, channels)], "m2")
    h = b.node("Add", [h, b.constant("b2", b.rng.standard_normal((1, channels)))], "back")
    return b.node("Add", [x, h], "y")


def compare(path, activation_and_residual):
    """The layers are these, and the compiled network equals ONNX Runtime."""
    network = convert(path)
    problems = {name: layer.problem for name, layer in network.layers.items()}
    assert {name: (p.activation, p.residual) for name, p in problems.items()} == activation_and_residual
    assert {n.domain for n in network.graph.nodes} == {"kerf"}
    built = build(network, TARGET, RecordBook())
    session = steps.session(network, built, 1)
    verify(session.run, network.path, network.inputs)
    return problems


@pytest.mark.parametrize("rows", [(9,), (2, 7), (2, 3, 5)], ids=["2-D", "tokens", "NHWC"])
def test_products_of_any_rank_are_layers(tmp_path, rows):
    b, shape = Builder(), (*rows, 12)
    path = b.save(tmp_path / "m.onnx", mixer(b, "input", 12), shape, shape)
    found = compare(path, {"m1": ("relu", False), "m2": ("none", True)})
    assert {(p.batch, p.n) for p in found.values()} == {(math.prod(rows), 4)}


def test_a_bias_that_adds_dimensions_or_differs_by_token_is_not_fused(tmp_path):
    for bias in ((1, 1, 1, 8), (7, 8), (2, 1, 8)):
        b = Builder()
        m = b.node("MatMul", ["input", weight(b, "w", 12, 8)], "m")
        y = b.node("Add", [m, b.constant("b", b.rng.standard_normal(bias))], "y")
        network = convert(b.save(tmp_path / "m.onnx", y, (2, 7, 12), (1,) * (len(bias) - 3) + (2, 7, 8)))
        assert [n.op_type for n in network.graph.nodes] == ["Layer", "Add"]
        assert not network.layers["m"].bias.any()


CONVOLUTIONS = {
    "plain": (8, 1, 42, {"pads": [2, 1]}),
    "strided and dilated": (8, 1, 20, {"strides": [2], "dilations": [2], "pads": [0, 3]}),
    "same": (8, 1, 21, {"strides": [2], "auto_pad": "SAME_UPPER"}),
    "grouped": (8, 2, 39, {}),
    "depthwise": (6, 6, 41, {"pads": [1, 1]}),
}


@pytest.mark.parametrize("key", CONVOLUTIONS)
def test_a_convolution_of_one_dimension_is_one_of_an_image_of_one_row(tmp_path, key):
    outputs, groups, length, attributes = CONVOLUTIONS[key]
    b = Builder()
    w = b.constant("w", b.rng.standard_normal((outputs, 6 // groups, 3)))
    bias = b.constant("b", b.rng.standard_normal(outputs))
    y = b.node("Relu", [b.node("Conv", ["input", w, bias], "c", group=groups, **attributes)], "y")
    path = b.save(tmp_path / "m.onnx", y, (2, 6, 41), (2, outputs, length))
    (p,) = compare(path, {"c": ("relu", False)}).values()
    assert (p.height, p.width, p.kernel, p.groups) == (1, 41, (1, 3), groups)


def test_weights_that_do_not_fit_are_named(tmp_path):
    b = Builder()
    y = b.node("MatMul", ["input", b.constant("w", np.ones((5, 4)))], "y")
    path = b.save(tmp_path / "m.onnx", y, (2, 7, 6), (2, 7, 4))
    with pytest.raises(ValueError, match="MatMul"):
        convert(path)
