"""Pieces: every node in one of them, none before what it reads, and no change of engine that is not needed."""

import itertools

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from kerf.deploy.frontend.network import KERF, Piece
from kerf.deploy.frontend.onnx_graph import Graph, reads
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.cut import cut, joined, with_layers

pytestmark = pytest.mark.quick


def graph_of(*nodes: str) -> Graph:
    """operator: inputs -> outputs; layers are nodes "Layer" with a Relu as the ONNX node that they were made of."""
    made = []
    for text in nodes:
        op, rest = text.split(": ")
        inputs, outputs = (part.split() for part in rest.split(" -> "))
        made.append(helper.make_node("Relu" if op == "Layer" else op, inputs, outputs, name=text))
    shape = [1, 4]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = Graph(
        helper.make_model(
            helper.make_graph(made, "g", values[:1], values[1:]),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        )
    )
    for node in graph.nodes:
        if node.name.startswith("Layer"):
            graph.replace([node], helper.make_node("Layer", node.input, node.output, name=node.name, domain="kerf"))
    return graph


def engines(pieces):
    return [(piece.engine, len(piece.nodes)) for piece in pieces]


def takes(node):
    return node.op_type in ("Layer", "Neg")


def test_a_chain_is_cut_where_the_engine_changes():
    pieces = cut(graph_of("Layer: x -> a", "Neg: a -> b", "Exp: b -> c", "Layer: c -> y"), takes, "other")
    assert engines(pieces) == [(KERF, 2), ("other", 1), (KERF, 1)]
    assert [(p.inputs, p.outputs) for p in pieces] == [(("x",), ("b",)), (("b",), ("c",)), (("c",), ("y",))]


def test_branches_are_gathered_not_alternated():
    """Four branches of a layer and an Exp each: all layers, then all others, then the sum."""
    branches = [text for i in range(4) for text in (f"Layer: x -> a{i}", f"Exp: a{i} -> b{i}")]
    pieces = cut(graph_of(*branches, "Sum: b0 b1 b2 b3 -> y"), takes, "other")
    assert engines(pieces) == [(KERF, 4), ("other", 5)]


def test_what_touches_no_layer_is_not_kerfs():
    graph = graph_of("Neg: x -> a", "Exp: a -> b", "Neg: b -> c", "Layer: c -> d", "Exp: d -> e", "Neg: e -> y")
    assert with_layers(graph, takes) == {2, 3}


def test_every_node_runs_once_and_behind_what_it_reads():
    rng = np.random.default_rng(0)
    for _ in range(30):
        made, names = [], ["x"]
        for i in range(25):
            op = ("Layer", "Neg", "Exp", "Add")[rng.integers(4)]
            read = [names[j] for j in rng.integers(len(names), size=2 if op == "Add" else 1)]
            names.append("y" if i == 24 else f"t{i}")
            made.append(f"{op}: {' '.join(read)} -> {names[-1]}")
        graph = graph_of(*made)
        pieces, there, ran = cut(graph, takes, "other"), {"x"}, []
        for piece in pieces:
            assert set(piece.inputs) <= there
            inside = set(piece.inputs)
            for node in piece.nodes:
                assert reads(node) <= inside
                inside |= set(node.output)
                ran.append(node.name)
            assert set(piece.outputs) <= inside
            there |= set(piece.outputs)
        assert "y" in there
        assert sorted(ran) == sorted(node.name for node in graph.nodes)
        assert all(a.engine != b.engine for a, b in itertools.pairwise(pieces))


def test_a_piece_given_up_becomes_one_with_its_neighbours():
    graph = graph_of("Layer: x -> a", "Exp: a -> b", "Layer: b -> c", "Exp: c -> d", "Layer: d -> y")
    first, left, given, right, last = cut(graph, takes, "other")
    given = Piece("other", given.nodes, given.inputs, given.outputs)
    pieces = joined(graph, [first, left, given, right, last])
    assert engines(pieces) == [(KERF, 1), ("other", 3), (KERF, 1)]
    assert (pieces[1].inputs, pieces[1].outputs) == (("a",), ("d",))
    assert [p.key for p in pieces[::2]] == [first.key, last.key]


def test_a_piece_is_a_model_of_onnxs_own_nodes():
    graph = graph_of("Layer: x -> a", "Neg: a -> b", "Exp: b -> y")
    piece, _ = cut(graph, takes, "other")
    model = onnx_piece.model(graph, piece)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Neg"]
    x = np.float32([[-1, 2, -3, 4]])
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(found, -np.maximum(x, 0))


def test_what_is_no_tensor_of_numbers_is_not_exchanged():
    graph = graph_of("Layer: x -> a", "SequenceConstruct: a -> b", "SequenceLength: b -> c", "Cast: c -> y")
    one = Piece("other", graph.nodes[:2], ("x",), ("b",))
    two = Piece(KERF, graph.nodes[2:], ("b",), ("y",))
    assert onnx_piece.untyped(graph, [one, two]) == "b"


def test_a_piece_of_kerfs_has_a_layer():
    """The Neg and the Add touch a layer, but wait for ONNX Runtime, and no layer of kerf's runs with them."""
    graph = graph_of("Layer: x -> a", "Exp: a -> b", "Neg: b -> c", "Add: a c -> d", "Exp: d -> y")
    pieces = cut(graph, lambda node: takes(node) or node.op_type == "Add", "other")
    assert engines(pieces) == [(KERF, 1), ("other", 4)]
