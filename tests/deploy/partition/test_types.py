"""Inputs and outputs of every type, beside a piece of kerf's: Session.run gives what ONNX Runtime gives."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.network import KERF
from kerf.deploy.runtime.dense_engine import open_network
from kerf.errors import Unsupported
from tests.helpers.compiled import compiled

pytestmark = pytest.mark.quick

SHAPE = (1, 3, 5, 6)
rng = np.random.default_rng(0)
IMAGE = rng.standard_normal(SHAPE).astype(np.float32)
WEIGHT = numpy_helper.from_array(rng.standard_normal((4, 3, 1, 1)).astype(np.float32), "w")
CONV = helper.make_node("Conv", ["x", "w"], ["c"])


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def save(path, nodes, outputs, constants=(), opset=18, **inputs):
    """inputs: an example array of each, or its type; outputs: name -> type."""
    ends = [values(inputs), values(outputs)]
    stored = [WEIGHT, *(numpy_helper.from_array(np.asarray(a), n) for n, a in dict(constants).items())]
    graph = helper.make_graph(nodes, "types", *ends, stored)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def values(described):
    for name, what in described.items():
        if isinstance(what, onnx.TypeProto):
            yield helper.make_value_info(name, what)
        elif isinstance(what, np.ndarray):
            kind = TensorProto.STRING if what.dtype == object else helper.np_dtype_to_tensor_dtype(what.dtype)
            yield helper.make_tensor_value_info(name, kind, what.shape)
        else:
            yield helper.make_tensor_value_info(name, what, None)


def run(path, pieces, **given):
    """What kerf and ONNX Runtime give; twice, since memory between pieces stays."""
    network, session = compiled(path)
    assert [piece.engine == KERF for piece in network.run_by] == pieces
    expected = open_network("onnxruntime", path, 1)(given, {})
    for _ in range(2):
        found = session.run(given)
        found = found if isinstance(found, dict) else dict.fromkeys(expected, found)
        assert list(found) == list(expected)
        for name, truth in expected.items():
            same(found[name], truth)
    return found


def same(y, truth):
    if isinstance(truth, list):
        assert len(y) == len(truth)
        for one, other in zip(y, truth):
            same(one, other)
        return
    assert (y.dtype, y.shape) == (truth.dtype, truth.shape)
    if y.dtype.kind in "OUb":
        assert y.tolist() == truth.tolist()
    else:
        np.testing.assert_allclose(
            y.astype(np.float64), truth.astype(np.float64), 1e-2 if y.itemsize < 4 else 1e-5, 1e-5
        )


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "uint8"])
def test_images_of_other_types_in_and_out(tmp_path, kind):
    dtype = np.dtype(getattr(ml_dtypes, kind)) if kind == "bfloat16" else np.dtype(kind)
    number = helper.np_dtype_to_tensor_dtype(dtype)
    image = np.abs(IMAGE * 10).astype(dtype)
    nodes = [
        node("Cast", "i", "x", to=TensorProto.FLOAT), CONV, node("Abs", "c", "a"), node("Cast", "a", "y", to=number),
        node("Greater", "c zero", "b"),
    ]  # fmt: skip
    path = save(tmp_path / "m.onnx", nodes, {"y": number, "b": TensorProto.BOOL}, {"zero": np.float32(0)}, i=image)
    run(path, [False, True, False], i=image)


def test_strings_beside_images(tmp_path):
    words = np.array([["a", "b"], ["", "ß"]], object)
    path = save(
        tmp_path / "m.onnx", [CONV, node("StringConcat", "s s", "t"), node("Shape", "s", "n")],
        {"t": TensorProto.STRING, "c": TensorProto.FLOAT, "n": TensorProto.INT64}, opset=20, x=IMAGE, s=words,
    )  # fmt: skip
    assert run(path, [True, False], x=IMAGE, s=words)["t"].tolist() == [["aa", "bb"], ["", "ßß"]]


def test_sizes_that_depend_on_numbers(tmp_path):
    nodes = [CONV, node("Relu", "c", "r"), node("NonZero", "r", "z"), node("Compress", "r b", "p", axis=1)]
    outputs = {"z": TensorProto.INT64, "p": TensorProto.FLOAT, "r": TensorProto.FLOAT}
    chosen = np.array([True, False, True, False])
    path = save(tmp_path / "m.onnx", nodes, outputs, x=IMAGE, b=chosen)
    for mask in (chosen, ~chosen, np.zeros(4, bool)):
        run(path, [True, False], x=IMAGE, b=mask)


def test_sequences_of_what_a_layer_makes(tmp_path):
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    nodes = [
        CONV, node("SplitToSequence", "c", "s", axis=1), node("SequenceInsert", "q c", "more"),
        node("ConcatFromSequence", "s", "y", axis=0),
    ]  # fmt: skip
    path = save(
        tmp_path / "m.onnx", nodes, {"s": sequence, "more": sequence, "y": TensorProto.FLOAT}, x=IMAGE, q=sequence
    )
    run(path, [True, False], x=IMAGE, q=[IMAGE[0], IMAGE])


def test_tensors_of_no_axes_and_of_no_numbers_between_pieces(tmp_path):
    nodes = [
        node("ReduceMax", "i", "m", keepdims=0), node("Mul", "i m", "x"), CONV,
        node("Slice", "c one one axis", "e"), node("Exp", "e", "none"), node("ReduceMin", "c", "y", keepdims=0),
    ]  # fmt: skip
    constants = {"one": np.array([1]), "axis": np.array([2])}
    outputs = {"none": TensorProto.FLOAT, "y": TensorProto.FLOAT, "m": TensorProto.FLOAT}
    path = save(tmp_path / "m.onnx", nodes, outputs, constants, i=IMAGE)
    assert run(path, [False, True, False], i=IMAGE)["none"].shape == (1, 4, 0, 6)


def test_arrays_that_do_not_lie_in_order_or_are_read_only(tmp_path):
    nodes = [node("Exp", "i", "x"), CONV, node("Exp", "c", "y")]
    path = save(tmp_path / "m.onnx", nodes, {"y": TensorProto.FLOAT}, i=IMAGE)
    _, session = compiled(path)
    expected = session.run(IMAGE)
    turned = np.ascontiguousarray(IMAGE.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    fixed = IMAGE.copy()
    fixed.flags.writeable = False
    for same_numbers in (turned, fixed, IMAGE[:, :, ::-1][:, :, ::-1]):
        np.testing.assert_array_equal(session.run(same_numbers), expected)


def test_numbers_of_less_than_a_byte_are_refused_in_one_line(tmp_path):
    nodes = [CONV, node("Cast", "c", "y", to=TensorProto.INT4)]
    path = save(tmp_path / "m.onnx", nodes, {"y": TensorProto.INT4}, opset=21, x=IMAGE)
    with pytest.raises(Unsupported, match=r"'y' is a tensor\(int4\), which ONNX Runtime's Python cannot be given"):
        compiled(path)
