"""Files of every form: what ONNX Runtime computes of the cleaned file is what it computes of the file itself."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend import clean
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.sizes import free_sizes
from tests.helpers.onnx_files import file, ints, node, same

pytestmark = pytest.mark.quick

F, I = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32)
WIDE = (RNG.standard_normal((8, 8, 1, 1)) / 3).astype(np.float32)


def conv(x="x", w="w", y="c"):
    return node("Conv", f"{x} {w}", y, pads=[1] * 4)


def operators(model):
    return [n.op_type for n in model.graph.node]


def static(model):
    graph = Graph(model)
    return all(graph.fixed_shape(name) for n in graph.nodes for name in n.output)


GRID = [
    conv(),
    node("Shape", "c", "s"),
    node("Gather", "s three", "width", axis=0),
    node("Range", "zero width one", "r"),
    node("Cast", "r", "f", to=F),
    node("Reshape", "f row", "col"),
    node("Expand", "col s", "grid"),
    node("Concat", "c grid", "y", axis=1),
]
SHAPED = {
    "coordconv": (GRID, ints(three=3, zero=0, one=1, row=[1, 1, 1, -1]), ["Conv", "Concat"]),
    "flatten by its own batch": (
        [
            conv(),
            node("Shape", "c", "s"),
            node("Slice", "s zero one", "n"),
            node("Concat", "n rest", "to", axis=0),
            node("Reshape", "c to", "y"),
        ],
        ints(zero=[0], one=[1], rest=[-1]),
        ["Conv", "Reshape"],
    ),
    "resize to the size of another": (
        [
            conv(),
            node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Shape", "c", "s"),
            node("Resize", "p   s", "up", mode="nearest"),
            node("Add", "up c", "y"),
        ],
        {},
        ["Conv", "MaxPool", "Resize", "Add"],
    ),
    "an If on a shape": (
        [
            conv(),
            node("Size", "c", "size"),
            node("Greater", "size many", "large"),
            helper.make_node(
                "If",
                ["large"],
                ["y"],
                then_branch=helper.make_graph(
                    [node("Constant", "", "two", value_float=2.0), node("Mul", "c two", "t")],
                    "then",
                    [],
                    [helper.make_tensor_value_info("t", F, None)],
                ),
                else_branch=helper.make_graph(
                    [node("Neg", "c", "t")], "else", [], [helper.make_tensor_value_info("t", F, None)]
                ),
            ),
        ],
        ints(many=9),
        ["Conv", "Mul"],
    ),
    "Identity and Dropout": (
        [
            node("Identity", "x", "i"),
            conv("i"),
            node("Dropout", "c", "d mask"),
            node("Identity", "d", "j"),
            node("Relu", "j", "r"),
            node("Identity", "r", "y"),
        ],
        {},
        ["Conv", "Relu"],
    ),
}


@pytest.mark.parametrize("case", SHAPED)
def test_shape_arithmetic_is_done_once_the_batch_is_known(tmp_path, case):
    nodes, constants, left = SHAPED[case]
    model = same(file(tmp_path / "m.onnx", nodes, {"w": W, **constants}), batch=2)
    assert operators(model) == left
    assert static(model)
    assert model.graph.node[0].name == "c.node"


def weights_by(form):
    """Nodes that make the weight w, and the constants that they need."""
    fp16 = W.astype(np.float16)
    return {
        "Constant": ([node("Constant", "", "w", value=numpy_helper.from_array(W))], {}),
        "Transpose": ([node("Transpose", "hwio", "w", perm=[3, 2, 0, 1])], {"hwio": W.transpose(2, 3, 1, 0)}),
        "Reshape": ([node("Reshape", "flat to", "w")], {"flat": W.ravel(), **ints(to=W.shape)}),
        "Cast": ([node("Cast", "half", "w", to=F)], {"half": fp16.astype(np.float64)}),
        "Identity": ([node("Identity", "u", "w")], {"u": W}),
        "a chain": (
            [node("Mul", "u two", "v"), node("Identity", "v", "v2"), node("Div", "v2 two", "w")],
            {"u": W, "two": np.float32(2)},
        ),
    }[form]


@pytest.mark.parametrize("form", ["Constant", "Transpose", "Reshape", "Cast", "Identity", "a chain"])
def test_weights_are_plain_constants_however_they_were_written(tmp_path, form):
    made, constants = weights_by(form)
    model = same(file(tmp_path / "m.onnx", [*made, conv(), conv(w="w", y="y")], constants, outputs=("y", "c")))
    assert operators(model) == ["Conv", "Conv"]
    first, second = model.graph.node
    assert first.input[1] == second.input[1]  # shared, and stored once
    assert [t.name for t in model.graph.initializer] == [first.input[1]]


def test_sparse_constants_become_dense(tmp_path):
    zero = W * (np.arange(W.size).reshape(W.shape) % 3 == 0)
    places = np.flatnonzero(zero)
    values = numpy_helper.from_array(zero.ravel()[places], "w")
    flat = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "w.places"), W.shape)
    model = same(file(tmp_path / "m.onnx", [conv(y="y")], {}, sparse=[flat]))
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), zero)
    assert not model.graph.sparse_initializer


def test_functions_are_inlined(tmp_path):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [node("Sigmoid", "a", "s"), node("Mul", "a s", "b")]
    function = helper.make_function("own", "Swish", ["a"], ["b"], body, imports[:1])
    nodes = [conv(), helper.make_node("Swish", ["c"], ["y"], "act", domain="own")]
    model = same(file(tmp_path / "m.onnx", nodes, {"w": W}, functions=[function], opset_imports=imports))
    assert operators(model) == ["Conv", "Sigmoid", "Mul"]


def test_data_beside_the_file_are_read_and_data_elsewhere_refused(tmp_path):
    path = file(tmp_path / "m.onnx", [conv(y="y")], {"w": W})
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    same(path)
    (entry,) = (
        e
        for e in onnx.load(str(path), load_external_data=False).graph.initializer[0].external_data
        if e.key == "location"
    )
    assert entry.value == "m.data"
    raw = path.read_bytes()
    for place in ("../m.d", "/etc/m"):
        path.write_bytes(raw.replace(b"m.data", place.encode()))
        with pytest.raises(ValueError, match="outside the file's folder") as error:
            clean.read(path)
        assert "\n" not in str(error.value)
    path.write_bytes(raw.replace(b"m.data", b"m.none"))
    with pytest.raises(ValueError, match="not a readable ONNX model"):
        clean.read(path)


def test_half_networks_compute_in_float32_and_keep_their_edges(tmp_path):
    half = TensorProto.FLOAT16
    nodes = [
        conv(),
        node("Constant", "", "two", value=numpy_helper.from_array(np.float16([2]))),
        node("Mul", "c two", "m"),
        node("Cast", "m", "wide", to=F),
        node("Cast", "wide", "again", to=half),
        node("Relu", "again", "y"),
    ]
    model = same(file(tmp_path / "m.onnx", nodes, {"w": W.astype(np.float16)}, kind=half, outputs=("y", "c")), 1e-2)
    assert operators(model) == ["Cast", "Conv", "Mul", "Relu", "Cast", "Cast"]
    assert clean.is_widened(model)
    assert all(t.data_type == F for t in model.graph.initializer)
    assert not clean.is_widened(clean.read(file(tmp_path / "f.onnx", [conv(y="y")], {"w": W})))


def loop(body_reads):
    carried = [helper.make_tensor_value_info(k, F, None) for k in ("v", "v2")]
    condition = [helper.make_tensor_value_info(k, TensorProto.BOOL, []) for k in ("going", "going2")]
    body = [node("Add", f"v {body_reads}", "v2"), node("Identity", "going", "going2")]
    trip = helper.make_tensor_value_info("i", I, [])
    graph = helper.make_graph(body, "body", [trip, condition[0], carried[0]], [condition[1], carried[1]])
    return helper.make_node("Loop", ["times", "", "c"], ["y"], "loop", body=graph)


OTHERS = {
    "bool output": ([conv(), node("Greater", "c half", "y")], {"half": np.float32(0.5)}, {}),
    "integers": ([node("Add", "x one", "y")], ints(one=1), {"kind": I}),
    "float64": ([node("MatMul", "x d", "y")], {"d": np.ones((16, 4))}, {"kind": TensorProto.DOUBLE}),
    "strings": ([conv(y="y"), node("Identity", "text", "z")], {"text": np.array(["a", "b"], object)}, {}),
    "a sequence": (
        [conv(), node("SplitToSequence", "c", "parts", axis=1), node("ConcatFromSequence", "parts", "y", axis=1)],
        {},
        {},
    ),
    "a loop that captures": ([node("Identity", "x", "i"), conv("i"), loop("c")], ints(times=3), {}),
    "a loop over a constant": ([conv(), node("Add", "u u", "v"), loop("v")], ints(times=2) | {"u": np.float32(1)}, {}),
    "an output that is an input": ([conv(y="y")], {}, {"outputs": ("y", "x")}),
    "an output that is a constant": ([conv(y="y")], {}, {"outputs": ("y", "w")}),
    "all constant": ([node("Neg", "w", "y")], {}, {}),
    "one value, two outputs": (
        [conv(), node("Identity", "c", "y"), node("Identity", "c", "z")],
        {},
        {"outputs": ("y", "z", "c")},
    ),
    "an input as it is": ([node("Identity", "x", "y")], {}, {}),
    "of unknown size": ([conv(), node("NonZero", "c", "y")], {}, {}),
    "chance": (
        [conv(), node("RandomNormal", "", "n", shape=[1]), node("Mul", "n zero", "z"), node("Add", "c z", "y")],
        {"zero": np.zeros(1, np.float32)},
        {},
    ),
    "empty optional inputs": ([node("Resize", "x  scales", "y")], {"scales": np.float32([1, 1, 2, 2])}, {}),
    "a mask of infinity": (
        [conv(), node("Where", "keep c low", "y")],
        {"keep": np.array([True]), "low": np.float32(-np.inf)},
        {},
    ),
    "part of a Split": (
        [node("Split", "u", "a b", axis=0), node("Add", "x a", "y")],
        {"u": np.ones((2, 1, 1, 1), np.float32)},
        {},
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_has_no_layers_or_other_types_passes_as_it_is(tmp_path, case):
    nodes, constants, more = OTHERS[case]
    used = {name for n in nodes for name in n.input} | set(more.get("outputs", ()))
    same(file(tmp_path / "m.onnx", nodes, {k: a for k, a in {"w": W, **constants}.items() if k in used}, **more))


def test_large_results_of_small_constants_stay_operators(tmp_path):
    nodes = [node("Expand", "one to", "big"), node("Add", "x big", "y")]
    path = file(tmp_path / "m.onnx", nodes, {"one": np.float32(1), **ints(to=[64, 1, 512, 512])}, shape=(1, 1, 1, 1))
    assert operators(clean.read(path)) == ["Expand", "Add"]


def test_weights_that_are_not_finite_are_refused_wherever_they_come_from(tmp_path):
    path = file(tmp_path / "m.onnx", [node("Log", "u", "w"), conv(y="y")], {"u": -np.ones_like(W)})
    with pytest.raises(ValueError, match=r"m\.onnx: weight 'w' holds NaN"):
        clean.read(path)


def test_unknown_domains_pass_with_the_shapes_that_the_file_gives(tmp_path):
    nodes = [conv(), helper.make_node("Own", ["c"], ["o"], "own", domain="elsewhere"), node("Relu", "o", "y")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 3)]
    path = file(tmp_path / "m.onnx", nodes, {"w": W}, opset_imports=imports)
    model = onnx.load(str(path))
    model.graph.value_info.append(helper.make_tensor_value_info("o", F, ("batch", 8, 16, 16)))
    onnx.save(model, str(path))
    model = clean.read(path, batch=4)
    assert {o.domain: o.version for o in model.opset_import} == {"": 17, "elsewhere": 3}
    assert Graph(model).shape("y") == (4, 8, 16, 16)


def test_free_sizes_stay_free(tmp_path):
    path = file(tmp_path / "m.onnx", [conv(y="y")], {"w": W}, shape=("n", 3, "height", None))
    model = clean.read(path)
    assert free_sizes(model) == {"x": (1, 3, "height", "?")}
    assert free_sizes(same(path, shapes={"x": (2, 3, 9, 10)})) == {}
