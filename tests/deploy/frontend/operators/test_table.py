"""Which nodes kerf has functions for, and what is said of the others."""

import re

import onnx
import pytest

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.operators.table import reason
from tests.helpers.onnx_networks import Builder

pytestmark = pytest.mark.quick


def refusal(tmp_path, build) -> str | None:
    b = Builder()
    y, shape = build(b)
    graph = Graph(onnx.load(b.save(tmp_path / "m.onnx", y, (2, 8, 15, 15), shape)))
    return reason(graph, graph.nodes[-1])


def test_what_kerf_takes(tmp_path):
    for build in (
        lambda b: (b.node("GlobalAveragePool", ["input"], "y"), (2, 8, 1, 1)),
        lambda b: (b.node("ReduceMean", ["input", b.integers("axes", [-1, 2])], "y"), (2, 8, 1, 1)),
        lambda b: (b.node("MaxPool", ["input"], "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), (2, 8, 8, 8)),
        lambda b: (b.node("Flatten", ["input"], "y"), (2, 1800)),
    ):
        assert refusal(tmp_path, build) is None


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda b: (b.node("Cos", ["input"], "y"), (2, 8, 15, 15)), "no function for Cos"),
        (lambda b: (b.node("ReduceMean", ["input", b.integers("a", [1])], "y"), (2, 1, 15, 15)), r"over axes \[1\]"),
        (lambda b: (b.node("Shape", ["input"], "y"), None), "no function for Shape"),
        (
            lambda b: (
                b.node("Resize", ["input", "", "", b.integers("s", [2, 8, 9, 30])], "y", mode="linear"),
                (2, 8, 9, 30),
            ),
            "kerf enlarges",
        ),
        (
            lambda b: (
                b.node("Resize", ["input", "", "", b.integers("s", [2, 8, 30, 30])], "y", mode="cubic"),
                (2, 8, 30, 30),
            ),
            "cubic",
        ),
        (
            lambda b: (b.node("MaxPool", [b.node("Flatten", ["input"], "f")], "y", kernel_shape=[2]), None),
            "has 2 dimensions, not the 4 of images",
        ),
    ],
)
def test_why_kerf_does_not(tmp_path, build, said):
    b = Builder()
    y, shape = build(b)
    graph = Graph(
        onnx.helper.make_model(
            onnx.helper.make_graph(
                b.nodes,
                "g",
                [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, (2, 8, 15, 15))],
                [onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, shape)],
                b.constants,
            )
        )
    )
    assert re.search(said, reason(graph, graph.nodes[-1]))


def test_other_types_are_refused():
    i = onnx.TensorProto.INT64
    node = onnx.helper.make_node("Flatten", ["input"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("input", i, (2, 3))], [value("y", i, (2, 3))])
    graph = Graph(onnx.helper.make_model(graph))
    assert reason(graph, graph.nodes[0]) == "'input' is int64, neither float32 nor bytes"
