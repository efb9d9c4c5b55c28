"""Factors and terms of a convolution's output: folded where they are one number a channel, left where they are not."""

import numpy as np
import onnx
import pytest
from onnx import helper

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.fold_affine import fold_affine
from kerf.deploy.measure.verify import reference_session
from tests.helpers.onnx_networks import Builder

pytestmark = pytest.mark.quick
X = np.random.default_rng(1).standard_normal((1, 3, 7, 7)).astype(np.float32)


def network(tmp_path, *steps, bias=True, outputs=()):
    """A convolution of 7 channels on 7x7 and ``steps`` behind it: operator, constant, and whether that comes first."""
    b = Builder()
    x = b.conv("input", "conv", 7, 3, 3, bias=bias)
    for i, (op, constant, first) in enumerate(steps):
        name = b.constant(f"c{i}", constant)
        x = b.node(op, [name, x] if first else [x, name], f"s{i}")
    path = b.save(tmp_path / "m.onnx", x, X.shape, (1, 7, 7, 7))
    model = onnx.load(path)
    model.graph.output.extend(helper.make_tensor_value_info(o, 1, (1, 7, 7, 7)) for o in outputs)
    return model


def folded(model):
    graph = Graph(model)
    fold_affine(graph)
    return [n.op_type for n in graph.nodes], graph.model()


CHANNELS = np.linspace(0.5, 2, 7).reshape(7, 1, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_numbers_of_channels_go_into_the_convolution_and_nothing_else_changes(tmp_path, bias):
    model = network(
        tmp_path, ("Mul", [1.4], True), ("Add", [-0.6], False), ("Mul", CHANNELS, False), ("Add", CHANNELS[None], True),
        bias=bias,
    )  # fmt: skip
    truth = reference_session(model).run(None, {"input": X})[0]
    operators, after = folded(model)
    assert operators == ["Conv"]
    np.testing.assert_allclose(reference_session(after).run(None, {"input": X})[0], truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "outputs"),
    [
        (("Mul", np.linspace(0.5, 2, 7), False), ()),  # columns
        (("Add", np.linspace(0.5, 2, 7).reshape(7, 1), False), ()),  # rows
        (("Mul", np.full((7, 7, 7), 2.0), False), ()),
        (("Div", [2.0], True), ()),
        (("Mul", [2.0], False), ("conv",)),  # an output of the network
    ],
    ids=["columns", "rows", "pixels", "quotient", "output"],
)
def test_what_is_no_number_of_a_channel_stays(tmp_path, step, outputs):
    assert folded(network(tmp_path, step, outputs=outputs))[0] == ["Conv", step[0]]


def test_zeros_stay_zeros(tmp_path):
    b = Builder()
    b.node("Mul", [b.conv("input", "conv", 8, 3, 1, zero_blocks=0.5), b.constant("c", [3.0])], "m")
    graph = Graph(onnx.load(b.save(tmp_path / "m.onnx", "m", X.shape, (1, 8, 7, 7))))
    before = graph.constants["conv.weight"]
    fold_affine(graph)
    np.testing.assert_array_equal(graph.constants[graph.nodes[0].input[1]] == 0, before == 0)
