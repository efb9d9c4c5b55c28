"""Every spelling of an activation that exporters write is fused; what only resembles one is not."""

import math

import numpy as np
import onnx
import pytest

from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.activations import activation_after
from kerf.kernels.pointwise.activation import Activation
from tests.helpers.onnx_networks import Builder

pytestmark = pytest.mark.quick


def found(tmp_path, spell, opset: int = 18) -> tuple[Activation, int]:
    b = Builder()
    x = b.node("Identity", ["input"], "x")
    y = spell(b, x)
    path = b.save(tmp_path / "m.onnx", y, (1, 4, 8, 8), (1, 4, 8, 8))
    model = onnx.load(path)
    model.opset_import[0].version = opset
    graph = Graph(model)
    activation, nodes = activation_after(graph, "x")
    return activation, len(graph.nodes) - 1 - len(nodes)


def c(b, value):
    return b.constant(f"c{len(b.constants)}", value)


def n(b, op, *inputs, **attributes):
    return b.node(op, list(inputs), f"{op}{len(b.nodes)}", **attributes)


def gelu_legacy(b, x):
    e = n(b, "Add", n(b, "Erf", n(b, "Div", x, c(b, math.sqrt(2)))), c(b, 1))
    return n(b, "Mul", n(b, "Mul", x, e), c(b, 0.5))


def gelu_dynamo(b, x):
    e = n(b, "Add", c(b, [1]), n(b, "Erf", n(b, "Mul", c(b, [math.sqrt(0.5)]), x)))
    return n(b, "Mul", n(b, "Mul", c(b, [0.5]), x), e)


def gelu_tanh(b, x):
    u = n(b, "Mul", n(b, "Add", x, n(b, "Mul", n(b, "Pow", x, c(b, 3)), c(b, 0.044715))), c(b, math.sqrt(2 / math.pi)))
    return n(b, "Mul", n(b, "Mul", x, c(b, 0.5)), n(b, "Add", n(b, "Tanh", u), c(b, 1)))


def hardswish(b, x):
    return n(b, "Div", n(b, "Mul", x, n(b, "Clip", n(b, "Add", x, c(b, 3)), c(b, 0), c(b, 6))), c(b, 6))


SPELLINGS = {
    "relu": (lambda b, x: n(b, "Relu", x), Activation("relu")),
    "relu by max": (lambda b, x: n(b, "Max", x, c(b, 0)), Activation("relu")),
    "relu6": (lambda b, x: n(b, "Clip", x, c(b, 0), c(b, 6)), Activation("relu6")),
    "clip": (lambda b, x: n(b, "Clip", x, c(b, -1), c(b, 1)), Activation("clip", -1.0, 1.0)),
    "leaky": (lambda b, x: n(b, "LeakyRelu", x, alpha=0.25), Activation("leakyrelu", 0.25)),
    "one slope": (lambda b, x: n(b, "PRelu", x, c(b, [[[0.5]]])), Activation("leakyrelu", 0.5)),
    "elu": (lambda b, x: n(b, "Elu", x, alpha=0.5), Activation("elu", 0.5)),
    "hardswish": (lambda b, x: n(b, "HardSwish", x), Activation("hardswish")),
    "hardswish spelled": (hardswish, Activation("hardswish")),
    "hardswish gated": (
        lambda b, x: n(b, "Mul", n(b, "HardSigmoid", x, alpha=1 / 6, beta=0.5), x),
        Activation("hardswish"),
    ),
    "sigmoid": (lambda b, x: n(b, "Sigmoid", x), Activation("sigmoid")),
    "silu": (lambda b, x: n(b, "Mul", x, n(b, "Sigmoid", x)), Activation("silu")),
    "silu turned": (lambda b, x: n(b, "Mul", n(b, "Sigmoid", x), x), Activation("silu")),
    "tanh": (lambda b, x: n(b, "Tanh", x), Activation("tanh")),
    "gelu, torch's first exporter": (gelu_legacy, Activation("gelu")),
    "gelu, torch's second": (gelu_dynamo, Activation("gelu")),
    "gelu by tanh": (gelu_tanh, Activation("gelu_tanh")),
    "mish": (lambda b, x: n(b, "Mul", x, n(b, "Tanh", n(b, "Softplus", x))), Activation("mish")),
}


@pytest.mark.parametrize("key", SPELLINGS)
def test_spelling(tmp_path, key):
    spell, expected = SPELLINGS[key]
    assert found(tmp_path, spell) == (expected, 0)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [({}, "gelu"), ({"approximate": "none"}, "gelu"), ({"approximate": "tanh"}, "gelu_tanh")],
)
def test_gelu_of_opset_20(tmp_path, attributes, expected):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gelu", ["input"], ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, (1, 4, 8, 8))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 4, 8, 8))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    assert activation_after(Graph(model), "input")[0] == Activation(expected)


@pytest.mark.parametrize(
    "spell",
    [
        lambda b, x: n(b, "Mul", x, n(b, "Sigmoid", n(b, "Mul", x, c(b, 1.702)))),  # not gelu, though called so
        lambda b, x: n(b, "Clip", n(b, "Add", x, c(b, 2)), c(b, 0), c(b, 6)),
        lambda b, x: n(b, "Mul", x, c(b, np.ones((1, 4, 1, 1)))),
        lambda b, x: n(b, "Div", c(b, 1), x),
    ],
)
def test_what_resembles_an_activation_is_none(tmp_path, spell):
    assert found(tmp_path, spell)[0] == Activation()


def test_nodes_whose_values_others_read_stay(tmp_path):
    def gate_read_twice(b, x):
        gate = n(b, "Sigmoid", x)
        return n(b, "Add", n(b, "Mul", x, gate), n(b, "Cos", gate))

    assert found(tmp_path, gate_read_twice)[0] == Activation()


def test_a_layer_takes_its_activation_with_its_numbers(tmp_path):
    b = Builder()
    n(b, "LeakyRelu", b.conv("input", "c", 4, 3), alpha=0.125)
    network = convert(b.save(tmp_path / "m.onnx", b.nodes[-1].output[0], out_shape=(1, 4, 32, 32)))
    assert network.layers["c"].problem.epilogue == ("leakyrelu", 0.125, 0.0)
    assert '"alpha":0.125' in network.layers["c"].problem.to_json()
