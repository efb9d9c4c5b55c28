"""What is rounded and what is not, node by node, in files that ONNX Runtime runs."""

import numpy as np
import onnx
import onnxruntime
import pytest

import kerf
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.quantise.placement import named, placement
from tests.helpers.onnx_files import file, node

SHAPE = (1, 4, 6, 6)
RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4, 1, 1)).astype(np.float32)
B = {"b": RNG.standard_normal(4).astype(np.float32)}
HALVES = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
GELU = [
    *(node("Div", "a root", "d"), node("Erf", "d", "e"), node("Add", "e one", "f"), node("Mul", "a half", "h")),
    node("Mul", "h f", "g"),
]
M = {"m": RNG.standard_normal((6, 4)).astype(np.float32), "n": RNG.standard_normal((4, 6)).astype(np.float32)}
NETWORKS = {  # nodes, constants, and what the quantised file has Q/DQ behind, of tensors that were computed
    "a gate": (
        [node("Conv", "x w", "a"), node("Sigmoid", "a", "s"), node("Mul", "s a", "g"), node("Conv", "g v", "y")],
        {"w": W, "v": W[::-1].copy()},
        {"x", "a", "g", "y"},
    ),
    "a sigmoid of its own": (
        [node("Conv", "x w", "a"), node("Sigmoid", "a", "s"), node("Mul", "s x", "y")],
        {"w": W},
        {"x", "a", "s", "y"},
    ),
    "a bias behind a product, gelu by erf": (
        [node("MatMul", "x m", "p"), node("Add", "p b", "a"), *GELU, node("MatMul", "g n", "y")],
        {**M, **B, **HALVES},
        {"x", "a", "g"},
    ),
    "a sum of two products": (
        [node("MatMul", "x m", "p"), node("MatMul", "x l", "q"), node("Add", "p q", "y")],
        {**M, "l": M["m"][::-1].copy()},
        {"x", "p", "q", "y"},
    ),
    "the answer of a Gemm": (
        [node("Flatten", "x", "f"), node("Gemm", "f t", "y")],
        {"t": RNG.standard_normal((144, 5)).astype(np.float32)},
        {"f"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rounded_are(name, tmp_path):
    nodes, constants, expected = NETWORKS[name]
    path = file(tmp_path / "m.onnx", nodes, constants, shape=SHAPE)
    x = np.random.default_rng(1).standard_normal((32, *SHAPE[1:])).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    made = kerf.quantise(path, tmp_path / "q.onnx", tmp_path / "x.npz").path
    stored = {t.name for t in onnx.load(made).graph.initializer}
    read = [n.input[0] for n in onnx.load(made).graph.node if n.op_type == "QuantizeLinear"]
    assert len(read) == len(set(read))
    assert {name.removesuffix("_QuantizeLinear_Input") for name in read} - stored == expected
    f32, int8 = (onnxruntime.InferenceSession(p).run(None, {"x": x[:1]})[0] for p in (path, made))
    assert np.abs(f32 - int8).max() < 0.05 * np.abs(f32).max()


def test_nodes_without_names_and_with_one_name_get_their_own(tmp_path):
    nodes, constants, _ = NETWORKS["a gate"]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    for n, name in zip(nodes, ("", "same", "same", "a")):
        n.name = name
    graph = Graph(onnx.load(file(tmp_path / "m.onnx", nodes, constants, shape=SHAPE)))
    named(graph)
    names = [n.name for n in graph.nodes]
    assert len(set(names)) == 4
    assert all(names)
    found = placement(graph)
    assert sorted(found.left) == sorted(names[1:3])
    assert found.read == ("a",)
