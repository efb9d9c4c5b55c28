"""Files that are no valid models are refused by name, before anything acts on what they claim; valid ones never."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend import clean, memory
from kerf.deploy.frontend.convert import convert
from kerf.errors import BadInput
from tests.helpers.onnx_files import file, node
from tests.helpers.onnx_networks import mobile

F = TensorProto.FLOAT
W = np.ones((4, 3, 3, 3), np.float32)


def changed(tmp_path, change, name="m.onnx"):
    model = onnx.load(mobile(tmp_path / name))
    change(model)
    (tmp_path / name).write_bytes(model.SerializeToString())
    return tmp_path / name


def stem(model):
    return next(n for n in model.graph.node if n.name == "stem")


def given(**attributes):
    def change(model):
        kept = [a for a in stem(model).attribute if a.name not in attributes]
        del stem(model).attribute[:]
        stem(model).attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])

    return change


def tensor(name, array):
    def change(model):
        found = next(t for t in model.graph.initializer if t.name == name)
        found.CopyFrom(numpy_helper.from_array(np.asarray(array, np.float32), name))

    return change


def output_type(model):
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8


def initializer_type(number):
    def change(model):
        model.graph.initializer[0].data_type = number

    return change


def own_operator(model):
    stem(model).domain, stem(model).op_type = "kerf", "Layer"
    model.opset_import.append(helper.make_opsetid("kerf", 1))


def twice(model):
    model.graph.output[0].name = model.graph.initializer[0].name
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (given(strides=[0, 1]), "the strides [0, 1]; expected numbers from 1"),
        (given(strides=[2]), "which are not of one number of axes"),
        (given(pads=[2**40] * 4), "expected at most 1,048,576 pixels"),
        (given(dilations=[-1, 1]), "the dilations [-1, 1]"),
        (given(group=0), "the group 0"),
        (given(strides=b"x"), "expected a list of whole numbers"),
        (given(auto_pad=b"nope"), "not a valid ONNX model"),
        (tensor("stem.weight", np.ones((16, 5, 3, 3))), ""),
        (tensor("expand.bias", np.ones(7)), ""),
        (tensor("bn.beta", np.ones(15)), ""),
        (initializer_type(99), ""),
        (initializer_type(-1), ""),
        (initializer_type(0), ""),
        (output_type, "not a valid ONNX model"),
        (own_operator, "is an operator of kerf's own"),
        (lambda m: stem(m).ClearField("input"), ""),
        (lambda m: setattr(stem(m), "op_type", "Constant"), ""),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, change, said):
    path = changed(tmp_path, change)
    with pytest.raises(BadInput) as error:
        convert(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def shuffled(model):
    nodes = onnx.GraphProto(node=list(model.graph.node)[::-1])
    del model.graph.node[:]
    model.graph.node.extend(nodes.node)


def untyped(model):
    model.graph.value_info.append(onnx.ValueInfoProto(name="expand"))


def nameless(where):
    def change(model):
        value = helper.make_tensor_value_info("", F, [1, 2])
        getattr(model.graph, where).append(value)

    return change


def unread(model):
    tensor = model.graph.initializer.add(name="nobody's", data_type=F, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="absent.bin")


@pytest.mark.parametrize(
    "change",
    [shuffled, untyped, lambda m: setattr(m, "ir_version", 0), nameless("value_info"), nameless("input"), unread],
    ids=["shuffled", "untyped", "old", "nameless value", "nameless input", "unread data that are not there"],
)
def test_what_onnx_runtime_runs_is_read_though_the_checker_minds(tmp_path, change):
    plain = convert(mobile(tmp_path / "plain.onnx"))
    assert set(convert(changed(tmp_path, change)).layers) == set(plain.layers)


@pytest.mark.parametrize("where", ["small", "expand", "expand.bias"])
def test_names_that_are_no_text_are_spelt(tmp_path, where):
    """Of the graph, of a tensor between nodes, of a constant: ONNX Runtime minds none."""
    plain = mobile(tmp_path / "plain.onnx")
    name = where.encode()
    path = tmp_path / "other.onnx"
    path.write_bytes(plain.read_bytes().replace(bytes([len(name)]) + name, bytes([len(name)]) + b"\xf2" + name[1:]))
    onnxruntime.InferenceSession(str(path))
    found = convert(path)
    assert len(found.layers) == len(convert(plain).layers)


def test_an_input_whose_name_is_no_text_is_one_line(tmp_path):
    path = mobile(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"\x05input", b"\x05\xf2nput"))
    with pytest.raises(BadInput, match="the name of an input or output is not UTF-8"):
        convert(path)


@pytest.mark.parametrize("op", ["Range", "Tile", "Expand", "ConstantOfShape"])
def test_a_bomb_is_not_folded_and_refused_with_its_size(tmp_path, op):
    many = 10**12
    constants = {
        "many": np.int64(many), "zero": np.int64(0), "one": np.int64(1), "w": W,
        "sides": np.array([10**6, 10**6], np.int64), "ones": np.ones((1, 1), np.float32),
    }  # fmt: skip
    inputs = {"Range": "zero many one", "Tile": "ones sides", "Expand": "ones sides", "ConstantOfShape": "sides"}[op]
    nodes = [node(op, inputs, "bomb"), node("ReduceMax", "bomb", "least", keepdims=0)]
    nodes += [node("Cast", "least", "number", to=F), node("Conv", "x w", "c"), node("Add", "c number", "y")]
    path = file(tmp_path / "m.onnx", nodes, constants, shape=(1, 3, 16, 16))
    graph = clean.read_graph(path)
    assert "bomb" not in graph.constants
    with pytest.raises(BadInput, match=rf"{op} 'bomb.node' needs [48],000.0 GB .* this process may have"):
        memory.refuse(path, graph)


@pytest.mark.parametrize("op", ["Range", "ConstantOfShape"])
def test_a_bomb_that_nothing_reads_is_refused_before_onnx_runtime_runs_it(tmp_path, op):
    constants = {"many": np.int64(10**12), "zero": np.int64(0), "one": np.int64(1), "w": W, "sides": np.array([10**12])}
    nodes = [node(op, {"Range": "zero many one", "ConstantOfShape": "sides"}[op], "bomb"), node("Conv", "x w", "y")]
    path = file(tmp_path / "m.onnx", nodes, constants, shape=(1, 3, 16, 16))
    with pytest.raises(BadInput, match=rf"{op} 'bomb.node' needs [48],000.0 GB"):
        convert(path)
    assert clean.read_graph(path).outputs  # what is not run may be looked at


def test_a_file_that_ends_the_process_of_shape_inference_is_refused(tmp_path):
    bounds = {"w": W, "zero": np.array([0, 0], np.int64), "two": np.array([2, 2], np.int64), "axes": np.array([2, 3])}
    nodes = [node("Conv", "x w", "c", dilations=[40, 40]), node("Slice", "c zero two axes", "y")]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", F, (1, 3, 16, 16))], [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(value, name) for name, value in bounds.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=r"m\.onnx"):
        clean.read_graph(tmp_path / "m.onnx")


def test_data_beside_a_file_that_are_a_pipe_are_refused(tmp_path):
    path = mobile(tmp_path / "m.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    os.mkfifo(tmp_path / "m.data")
    with pytest.raises(BadInput, match=r"m\.data: a named pipe"):
        convert(path)
