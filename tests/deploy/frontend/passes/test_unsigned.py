"""Signed activations become unsigned, wherever nobody sees it; the numbers stay what they were, to the last bit."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.unsigned import unsigned
from tests.helpers.interpreted import whole
from tests.helpers.onnx_files import file, ints
from tests.helpers.quantised_nodes import Drawn

pytestmark = pytest.mark.quick

SIGNED = dict(scale=0.05, zero=-5, dtype="int8")
SHAPE = (1, 4, 8, 8)


def passed(path, kind=np.float32):
    """(types of integers behind the pass, the graph), once its outputs were compared with the file's."""
    model = onnx.load(path)
    graph = Graph(model)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SHAPE).astype(kind) if kind == np.float32 else rng.integers(-99, 99, SHAPE).astype(kind)
    before = whole(str(path), {"x": x})
    changed = unsigned(graph)
    after = graph.model()
    onnx.checker.check_model(after)
    for a, b in zip(before, whole(after, {"x": x}), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    kinds = {t: graph.types[t] for n in graph.nodes for t in n.output}
    return changed, {t for t, k in kinds.items() if k == TensorProto.INT8}, graph


def test_moved_integers(tmp_path):
    d = Drawn()
    d.q("x", "q", **SIGNED)
    d.add("MaxPool", "q", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    d.add("Concat", "p q", "c", axis=1)
    d.add("Reshape", "c five", "r")
    d.add("Split", "r halves", "a b", axis=1)
    d.dq("a", "y", **SIGNED)
    d.dq("b", "z", **SIGNED)
    constants = d.constants | ints(five=[1, 2, 4, 8, 8], halves=[1, 1])
    path = file(tmp_path / "m.onnx", d.nodes, constants, shape=SHAPE, outputs=("y", "z"))
    changed, signed, _ = passed(path)
    assert changed
    assert not signed


def test_integers_that_others_see_stay(tmp_path):
    d = Drawn()
    d.q("x", "q", **SIGNED)
    d.add("MaxPool", "q", "p", kernel_shape=[3, 3])
    d.add("Cast", "p", "seen", to=TensorProto.FLOAT)
    d.dq("q", "y", **SIGNED)
    d.q("y", "out", **SIGNED)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE, outputs=("seen", "y", "out"))
    changed, signed, _ = passed(path)
    assert not changed
    assert signed == {"q", "p", "out"}


def test_a_layer_that_reads_a_signed_input_has_unsigned_ones(tmp_path):
    d = Drawn()
    d.dq("x", "d", **SIGNED)
    d.add("Conv", f"d {d.weight('w', (3, 4, 1, 1))}", "c")
    d.q("c", "y", **SIGNED)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE, kind=TensorProto.INT8)
    changed, signed, graph = passed(path, np.int8)
    assert changed
    assert signed == {"y"}
    conv = next(n for n in graph.nodes if n.op_type == "Conv")
    assert graph.types[graph.producer(conv.input[0]).input[0]] == TensorProto.UINT8
