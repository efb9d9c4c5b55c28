"""Moves on integers in place of moves on floats: which nodes are left, and the same outputs to the last bit."""

from collections import Counter

import numpy as np
import onnx
import pytest

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.push_dequantise import push_dequantise
from tests.helpers.interpreted import whole
from tests.helpers.onnx_files import file, ints
from tests.helpers.quantised_nodes import Drawn

pytestmark = pytest.mark.quick

SHAPE = (1, 4, 8, 8)
OTHER = dict(scale=0.07, zero=3)


def passed(tmp_path, d, outputs=("y",), more=None, shape=SHAPE):
    path = file(tmp_path / "m.onnx", d.nodes, d.constants | (more or {}), shape=shape, outputs=outputs)
    graph = Graph(onnx.load(path))
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 3
    before = whole(str(path), {"x": x})
    push_dequantise(graph)
    after = graph.model()
    onnx.checker.check_model(after, full_check=True)
    for a, b in zip(before, whole(after, {"x": x}), strict=True):
        np.testing.assert_array_equal(a, b)
    return graph, Counter(n.op_type for n in graph.nodes)


def test_moves_of_one_scale_are_left_alone_among_integers(tmp_path):
    d = Drawn()
    d.pair("x", "a")
    d.add("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2])
    d.pair("p", "b")
    d.add("Transpose", "b", "t", perm=[0, 2, 1, 3])
    d.add("Reshape", "t four", "r")
    d.add("Slice", "r begin end axes", "s")
    how = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    d.add("Resize", "s  scales", "e", **how)
    d.pair("e", "y")
    more = ints(four=[1, 4, 4, 4], begin=[1], end=[3], axes=[1]) | {"scales": np.float32([1, 1, 2, 2])}
    _, found = passed(tmp_path, d, more=more)
    assert found == {
        **dict.fromkeys(("MaxPool", "Transpose", "Reshape", "Slice", "Resize"), 1),
        **{"QuantizeLinear": 1, "DequantizeLinear": 1},
    }


def test_pairs_of_another_scale_stay(tmp_path):
    d = Drawn()
    d.pair("x", "a")
    d.add("MaxPool", "a", "p", kernel_shape=[2, 2])
    d.pair("p", "y", **OTHER)
    graph, found = passed(tmp_path, d)
    assert found == {"QuantizeLinear": 2, "DequantizeLinear": 2, "MaxPool": 1}
    pool = next(n for n in graph.nodes if n.op_type == "MaxPool")
    assert graph.types[pool.input[0]] == onnx.TensorProto.UINT8


@pytest.mark.parametrize(("numbers", "moved"), [({}, True), (OTHER, False)], ids=["equal", "different"])
def test_images_joined(tmp_path, numbers, moved):
    d = Drawn()
    d.pair("x", "a")
    d.pair("x", "b", **numbers)
    d.add("Concat", "a b", "c", axis=1)
    d.pair("c", "y")
    graph, _ = passed(tmp_path, d)
    join = next(n for n in graph.nodes if n.op_type == "Concat")
    assert (graph.types[join.input[0]] == onnx.TensorProto.UINT8) == moved


def test_every_reader_has_floats_of_its_own(tmp_path):
    d = Drawn()
    d.pair("x", "a")
    d.add("Relu", "a", "r")
    d.add("Sigmoid", "a", "s")
    d.add("Mul", "a a", "m")
    graph, found = passed(tmp_path, d, outputs=("a", "r", "s", "m"))
    assert found["DequantizeLinear"] == 4
    assert all(len(graph.consumers(n.output[0])) < 2 for n in graph.nodes if n.op_type == "DequantizeLinear")


def test_a_tensor_is_quantised_once(tmp_path):
    """As many quantisers do for each of its readers."""
    d = Drawn()
    d.add("Relu", "x", "r")
    for name in ("a", "b"):
        d.pair("r", name)
    d.pair("r", "c", **OTHER)
    d.add("Sum", "a b c", "y")
    _, found = passed(tmp_path, d)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 3)


def test_constants(tmp_path):
    """Weights quantised in the file from floats, and transposed ones, stay integers; bounds become numbers."""
    d = Drawn()
    d.constant("w", d.rng.standard_normal((4, 4)).astype(np.float32))
    d.pair("w", "v", scale=[0.01, 0.02, 0.03, 0.04], zero=0, dtype="int8")
    for n in d.nodes:
        n.attribute.append(onnx.helper.make_attribute("axis", 0))
    d.add("Transpose", "v", "vt", perm=[1, 0])
    d.add("MatMul", "x vt", "m")
    d.add("Add", f"m {d.weight('b', (4,))}", "y")
    graph, found = passed(tmp_path, d, shape=(5, 4))
    assert found == {"DequantizeLinear": 1, "MatMul": 1, "Add": 1}
    weight = graph.producer("vt")
    assert graph.constants[weight.input[0]].dtype == np.int8
    assert weight.attribute[0].i == 1
