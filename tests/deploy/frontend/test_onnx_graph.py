"""The graph that passes edit: who reads what after changes, and what of a file it gives back."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import Graph
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def chain(length):
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], f"n{i}") for i in range(length)]
    return helper.make_model(helper.make_graph(nodes, "g", [value("t0", (1, 4))], [value(f"t{length}", (1, 4))]))


def branching():
    """An If whose branches capture c and w, after an Add that has w too."""
    then = helper.make_graph([helper.make_node("Mul", ["c", "w"], ["a"])], "then", [], [value("a", None)])
    other = helper.make_graph([helper.make_node("Neg", ["c"], ["b"])], "else", [], [value("b", None)])
    nodes = [
        helper.make_node("Add", ["x", "w"], ["c"], "add"),
        helper.make_node("If", ["go"], ["y"], "if", then_branch=then, else_branch=other),
    ]
    inputs = [value("x", (1, 4)), value("go", (), TensorProto.BOOL)]
    weights = [numpy_helper.from_array(np.ones(4, np.float32), "w")]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [value("y", (1, 4))], weights))


def test_readers_and_producers_follow_every_change():
    graph = Graph(chain(4))
    first, second = graph.nodes[:2]
    assert graph.sole_consumer("t1") is second
    new = helper.make_node("Sigmoid", ["t0"], ["t2"], "new")
    graph.replace([first, second], new)
    assert [n.name for n in graph.nodes] == ["new", "n2", "n3"]
    assert graph.producer("t2") is new
    assert graph.producer("t1") is None
    assert graph.consumers("t1") == []
    assert graph.consumers("t0") == [new]
    assert graph.sole_consumer("t4") is None  # an output
    graph.set_nodes(graph.nodes[:1])
    assert graph.producer("t3") is None


def test_what_branches_capture_is_read():
    graph = Graph(branching())
    assert [n.name for n in graph.consumers("c")] == ["if"]
    assert [n.name for n in graph.consumers("w")] == ["add", "if"]
    assert {t.name for t in graph.model().graph.initializer} == {"w"}


def test_long_graphs_take_time_in_proportion(monkeypatch):
    """Counted, not timed: reading and replacing every node asks the index, and walks no list of all."""
    graph, walks = Graph(chain(3000)), []
    monkeypatch.setattr(Graph, "nodes", property(lambda self: walks.append(1)))
    for i in range(0, 2998, 2):
        pair = [graph.producer(f"t{i + 1}"), graph.sole_consumer(f"t{i + 1}")]
        graph.replace(pair, helper.make_node("Relu", [f"t{i}"], [f"t{i + 2}"]))
    assert not walks


def test_a_model_has_the_opsets_functions_and_words_of_its_file():
    model = chain(1)
    model.opset_import.append(helper.make_opsetid("elsewhere", 3))
    model.metadata_props.add(key="author", value="somebody")
    made = Graph(model).model()
    assert {o.domain: o.version for o in made.opset_import}["elsewhere"] == 3
    assert {p.key: p.value for p in made.metadata_props} == {"author": "somebody"}


def test_constants_that_were_not_touched_are_written_as_they_were_read():
    model = chain(1)
    text = helper.make_tensor("text", TensorProto.STRING, [2], [b"\xff", b"b"])
    four = helper.make_tensor("four", TensorProto.INT4, [3], [1, -2, 3])
    model.graph.initializer.extend([text, four])
    model.graph.output.extend([value("text", [2], TensorProto.STRING), value("four", [3], TensorProto.INT4)])
    made = Graph(model).model()
    assert list(made.graph.initializer) == [text, four]
    assert [o.type.tensor_type.elem_type for o in made.graph.output][1:] == [TensorProto.STRING, TensorProto.INT4]


def test_a_constant_that_is_cut_short_is_named():
    model = chain(1)
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    weight.raw_data = weight.raw_data[:-5]
    model.graph.initializer.append(weight)
    with pytest.raises(BadInput, match="constant 'w' is cut short"):
        Graph(model)


def test_sequences_have_no_shape():
    nodes = [helper.make_node("SplitToSequence", ["x"], ["s"], axis=1)]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model = helper.make_model(helper.make_graph(nodes, "g", [value("x", (1, 4))], [helper.make_value_info("s", kind)]))
    onnx.checker.check_model(model)
    graph = Graph(model)
    assert graph.fixed_shape("s") is None
    assert graph.types["s"] == 0
