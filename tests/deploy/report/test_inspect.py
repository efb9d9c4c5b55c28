"""Densities counted by hand, from files written with onnx alone."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend.convert import convert
from kerf.deploy.report.block_pattern import pattern
from kerf.deploy.report.inspect import densities, expected_gain, inspect, measure, scattered
from kerf.deploy.report.stored_weights import Stored
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def write(path, nodes, weights, shape=None):
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [tensor("input", TensorProto.FLOAT, shape)],
        [tensor("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_block_and_element_density_with_a_short_last_row(tmp_path):
    weight = np.zeros((6, 2, 1, 1), np.float32)
    weight[1, 0] = 1  # block row 0, input 0
    weight[5, 1] = -1  # the short block row 1, input 1
    path = write(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["input", "w"], ["output"], "layer")],
        {"w": weight},
        (1, 2, 5, 5),
    )
    (layer,) = densities(path, 4)
    assert (layer.name, layer.op, layer.shape) == ("layer", "conv", (6, 2, 1, 1))
    assert (layer.blocks, layer.zero_blocks, layer.block) == (4, 2, 0.5)
    assert layer.element == pytest.approx(2 / 12)
    found = {"layer": "layer", "n": 4, "shape": [6, 2, 1, 1], "blocks": [2, 2], "kept": 0.5, "rows": ["10", "01"]}
    assert pattern(path, "layer", 4) == found
    assert pattern(path, "layer", 4, limit=1) == found | {"rows": ["1"]}
    with pytest.raises(ValueError, match="no layer other; its layers are layer"):
        pattern(path, "other", 4)


def test_depthwise_and_dense_layers_have_outputs_first(tmp_path):
    nodes = [
        helper.make_node("Conv", ["input", "dw"], ["a"], "dw", group=8),
        helper.make_node("GlobalAveragePool", ["a"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["b"], "fc", transB=1),
        helper.make_node("MatMul", ["b", "mm"], ["output"], "mm"),
    ]
    weights = {"dw": np.ones((8, 1, 3, 3)), "fc": np.ones((10, 8)), "mm": np.ones((10, 3))}
    path = write(tmp_path / "m.onnx", nodes, {k: v.astype(np.float32) for k, v in weights.items()}, (1, 8, 5, 5))
    assert [(layer.op, layer.shape) for layer in densities(path, 4)] == [
        ("depthwise", (8, 1, 3, 3)),
        ("dense", (10, 8)),
        ("dense", (3, 10)),
    ]


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; expected an"):
        densities(tmp_path / "absent.onnx", 4)
    weight = np.ones((64, 64, 3, 3), np.float32)
    path = write(tmp_path / "m.onnx", [helper.make_node("Conv", ["input", "w"], ["output"])], {"w": weight})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a readable ONNX model"):
        densities(path, 4)
    with pytest.raises(ValueError, match="block size is 0"):
        densities(path, 0)


def test_an_inspection_says_what_every_block_size_would_find(tmp_path):
    weight = np.ones((8, 4, 1, 1), np.float32)
    weight[:4, 0] = 0  # a block of four, two of two
    weight[6:, 1] = 0  # a block of two
    nodes = [helper.make_node("Conv", ["input", "w"], ["output"], "layer")]
    path = write(tmp_path / "m.onnx", nodes, {"w": weight}, (1, 4, 5, 5))
    found = inspect(path)
    (layer,) = found.layers
    assert (found.n, layer.name, layer.op, layer.shape) == (4, "layer", "conv", (8, 4, 1, 1))
    assert (layer.macs, layer.parameters, layer.zeros) == (8 * 4 * 25, 32, 6 / 32)
    assert layer.zero_blocks == {4: 1 / 8, 1: 6 / 32, 2: 3 / 16, 8: 0, 16: 0}
    assert layer.expected_gain == expected_gain(7 / 8, 4) > 1
    assert inspect(str(path), n=8).layers[0].expected_gain is None
    assert found.notes[0] == "1 layers, 0.00 M weights, 0.0 M MACs"
    assert "1 layers, 1 gain" in repr(found)
    assert json.loads(json.dumps(found.to_json()))["layers"][0]["zero_blocks"]["4"] == 1 / 8


def test_a_checkpoint_is_surveyed_without_torch(tmp_path):
    weight = np.zeros((4, 2, 3, 3), "<f4")
    weight[0, 0] = 1
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": weight.shape, "data_offsets": [0, weight.nbytes]}})
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + weight.tobytes())
    (layer,) = inspect(path).layers
    assert (layer.name, layer.op, layer.macs, layer.zero_blocks[4]) == ("a", "conv", None, 0.5)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="cut short"):
        inspect(path)


def test_sparser_is_faster_and_scattered_zeros_are_told_from_blocks(tmp_path):
    gains = [expected_gain(d, 4) for d in (1.0, 0.9, 0.5, 0.25, 0.1)]
    assert gains == sorted(gains)
    assert gains[0] < 1 < 1.5 < gains[2] < 2
    assert expected_gain(0.5, 1) < expected_gain(0.5, 3) <= gains[2]
    loose = (np.random.default_rng(0).random((64, 64, 1, 1)) < 0.5).astype(np.float32)
    blocks = np.repeat(loose[:16], 4, axis=0)
    assert scattered(measure(Stored("a", "conv", loose), 4))
    assert not scattered(measure(Stored("a", "conv", loose), 1))
    assert not scattered(measure(Stored("a", "conv", blocks), 4))


def volume(path):
    nodes = [helper.make_node("Conv", ["input", name], [f"of.{name}"], name) for name in ("a", "b")]
    nodes.append(helper.make_node("Add", ["of.a", "of.b"], ["output"]))
    return write(path, nodes, {k: np.ones((4, 3, 1, 1, 1), np.float32) for k in "ab"}, (1, 3, 4, "height", "width"))


def test_layers_without_a_kernel_are_counted_with_the_reason(tmp_path):
    path = volume(tmp_path / "m.onnx")
    with pytest.raises(BadInput, match=r"sizes are free in 'input' \(1x3x4x'height'x'width'\); fix them, e.g. --shape"):
        inspect(path)
    found = inspect(path, shapes={"input": (1, 3, 4, 5, 5)})
    assert found.layers == ()
    said = "2 of 2 convolutions and dense layers have no kernel here: 2 3-D convolution (a, b)"
    assert found.notes[-1] == said


def test_weights_behind_constant_nodes_are_those_that_the_tuner_sees(tmp_path):
    weight = np.ones((8, 4, 1, 1), np.float32)
    weight[:4, 2:] = 0
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Conv", ["input", "w"], ["output"], "layer"),
    ]
    path = write(tmp_path / "m.onnx", nodes, {}, ("batch", 4, 5, 5))
    (layer,) = inspect(path).layers
    (compiled,) = convert(path, 4, 0.2).layers.values()
    assert layer.zero_blocks[4] == 1 - compiled.problem.nnzb / 8 == 0.25
    assert layer.macs == compiled.problem.macs / 0.75 == 8 * 4 * 25  # as if nothing were zero
