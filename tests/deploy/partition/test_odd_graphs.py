"""Files that are odd and still valid: what ONNX Runtime makes of them is what kerf makes of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.network import KERF
from kerf.errors import BadInput
from tests.helpers.compiled import checked, compiled

pytestmark = pytest.mark.quick

F, I = TensorProto.FLOAT, TensorProto.INT64
OTHER = "onnxruntime"
IMAGE, SMALL = (1, 3, 6, 7), (1, 8, 6, 7)
rng = np.random.default_rng(0)
WEIGHTS = {
    "w": rng.standard_normal((8, 3, 1, 1)) / 2,
    "v": rng.standard_normal((8, 8, 1, 1)) / 3,
    "b": rng.standard_normal(8) / 10,
}


def node(op, inputs, outputs, name=None, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), outputs if name is None else name, **attributes)


def save(path, nodes, outputs, inputs=(("x", IMAGE),), constants=(), opset=18):
    """``outputs``: their names, or values; unused constants are stored, too."""
    stored = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in {**WEIGHTS, **dict(constants)}.items()]
    values = [helper.make_tensor_value_info(name, F, shape) for name, shape in inputs]
    ends = [helper.make_tensor_value_info(o, F, None) if isinstance(o, str) else o for o in outputs]
    graph = helper.make_graph(nodes, "odd", values, ends, stored)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


CONV = node("Conv", "x w b", "c")
ENDS = [node("Conv", "c v", "d"), node("Relu", "d", "y")]


@pytest.mark.parametrize("also", ["x", "w", "z"])
def test_an_output_that_is_an_input_or_a_constant(tmp_path, also):
    path = save(tmp_path / "m.onnx", [CONV, *ENDS], [also, "y"], [("z", (2, 2)), ("x", IMAGE)])
    assert checked(path) == ([KERF, OTHER] if also == "w" else [KERF])


def test_an_output_that_is_made_of_constants_alone(tmp_path):
    nodes = [CONV, *ENDS, node("Add", "w w", "twice")]
    assert checked(save(tmp_path / "m.onnx", nodes, ["y", "twice"])) == [KERF, OTHER]
    nodes.append(node("Exp", "y", "e"))
    assert checked(save(tmp_path / "m.onnx", nodes, ["twice", "e", "w"])) == [KERF, OTHER]


def test_an_output_that_is_an_input_is_a_copy(tmp_path):
    _, session = compiled(save(tmp_path / "m.onnx", [CONV, *ENDS], ["x", "y"]))
    x = np.ones(IMAGE, np.float32)
    session.run(x)["x"][:] = 2
    assert (x == 1).all()


def test_inputs_and_constants_that_nothing_reads(tmp_path):
    path = save(tmp_path / "m.onnx", [CONV, *ENDS], ["y"], [("none", (3,)), ("x", IMAGE), ("nor", ())])
    assert checked(path) == [KERF]
    _, session = compiled(path)
    assert list(session.inputs) == ["none", "x", "nor"]


def named(path, name):
    nodes = [
        node("Conv", "x w b", "c", name), node("Exp", "c", "e", name), node("Conv", "e v", "d", name),
        node("Relu", "d", "r", name), node("Concat", "r e", "y", name, axis=1),
    ]  # fmt: skip
    return save(path, nodes, ["y"])


def test_nodes_without_names(tmp_path):
    assert KERF in checked(named(tmp_path / "m.onnx", ""))


def test_nodes_of_one_name(tmp_path):
    """ONNX Runtime refuses them."""
    path = named(tmp_path / "m.onnx", "same")
    with pytest.raises(BadInput, match="two nodes with same node name") as caught:
        checked(path)
    assert "\n" not in str(caught.value)


def test_no_nodes(tmp_path):
    assert checked(save(tmp_path / "m.onnx", [], ["x"])) == [OTHER]
    assert checked(save(tmp_path / "m.onnx", [], ["w"], inputs=())) == [OTHER]


def test_nodes_that_compute_nothing(tmp_path):
    assert checked(save(tmp_path / "m.onnx", [node("Identity", "x", "y")], ["y"])) == [OTHER]
    nodes = [node("Identity", "x", "i"), node("Conv", "i w", "c"), node("Identity", "c", "y")]
    assert checked(save(tmp_path / "m.onnx", nodes, ["y"])) == [KERF]


def test_a_layers_output_read_on_and_given_out(tmp_path):
    """Of a layer that the next one reads, of a layer whose activation is its own node, of a residual."""
    nodes = [CONV, node("Conv", "c v", "d"), node("Relu", "d", "r"), node("Add", "r c", "y")]
    assert checked(save(tmp_path / "m.onnx", nodes, ["y", "c"])) == [KERF]
    assert checked(save(tmp_path / "m.onnx", nodes, ["c", "d", "y", "r"])) == [KERF]
    nodes = [CONV, node("Exp", "c", "e"), node("Conv", "e v", "d"), node("Add", "d c", "y")]
    assert checked(save(tmp_path / "m.onnx", nodes, ["c", "e", "y"])) == [KERF, OTHER, KERF]


def test_views_of_inputs_and_of_layers_given_out(tmp_path):
    nodes = [CONV, node("Flatten", "c", "f"), node("Flatten", "x", "g"), node("Identity", "c", "i"), *ENDS]
    assert KERF in checked(save(tmp_path / "m.onnx", nodes, ["f", "g", "i", "c", "y"]))


def branch(name, *nodes, output):
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(output, F, None)])


def test_branches_that_read_what_a_layer_makes(tmp_path):
    then = branch("then", node("Mul", "c c", "t"), output="t")
    other = branch("else", node("Conv", "c v", "u"), output="u")
    nodes = [
        CONV, node("ReduceMax", "c", "m", keepdims=0), node("Cast", "m", "k", to=TensorProto.BOOL),
        node("If", "k", "i", then_branch=then, else_branch=other), node("Conv", "i v", "y"),
    ]  # fmt: skip
    assert checked(save(tmp_path / "m.onnx", nodes, ["y"])) == [KERF, OTHER, KERF]


def test_loops_and_scans_that_read_what_a_layer_makes(tmp_path):
    values = [helper.make_tensor_value_info(n, k, ()) for n, k in (("n", I), ("go", TensorProto.BOOL))]
    state = helper.make_tensor_value_info("s", F, SMALL)
    body = helper.make_graph(
        [node("Add", "s c", "s.next"), node("Identity", "go", "go.next")],
        "body",
        [*values, state],
        [
            helper.make_tensor_value_info("go.next", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("s.next", F, SMALL),
        ],
    )
    three = numpy_helper.from_array(np.array(3), "three")
    constant = helper.make_node("Constant", [], ["three"], value=three)
    loop = [CONV, constant, helper.make_node("Loop", ["three", "", "c"], ["l"], body=body), node("Conv", "l v", "y")]
    assert checked(save(tmp_path / "m.onnx", loop, ["y", "l"])) == [KERF, OTHER]  # a loop may change sizes
    rows = helper.make_graph(
        [node("Add", "sum c", "sum.next"), node("Mul", "row c", "o")],
        "rows",
        [helper.make_tensor_value_info("sum", F, SMALL), helper.make_tensor_value_info("row", F, SMALL[1:])],
        [helper.make_tensor_value_info("sum.next", F, SMALL), helper.make_tensor_value_info("o", F, SMALL)],
    )
    scan = [CONV, node("Scan", "c c", "total rows", body=rows, num_scan_inputs=1), node("Conv", "total v", "y")]
    assert checked(save(tmp_path / "m.onnx", scan, ["y", "rows"])) == [KERF, OTHER, KERF]


def test_what_onnx_runtime_cannot_load_is_one_line(tmp_path):
    path = save(tmp_path / "m.onnx", [CONV, node("Unheard", "c", "y")], ["y"])
    with pytest.raises(Exception, match="Unheard") as caught:
        compiled(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["c", "y"])
def test_an_output_listed_twice(tmp_path, name):
    """Results go by name: it is one."""
    path = save(tmp_path / "m.onnx", [CONV, *ENDS], ["y", name, name])
    checked(path)
    assert list(compiled(path)[1].outputs) == list(dict.fromkeys(["y", name]))
