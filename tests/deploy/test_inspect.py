"""Densities counted by hand, from files written with onnx alone."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.inspect import densities, pattern


def write(path, nodes, weights):
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [tensor("input", TensorProto.FLOAT, None)],
        [tensor("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_block_and_element_density_with_a_short_last_row(tmp_path):
    weight = np.zeros((6, 2, 1, 1), np.float32)
    weight[1, 0] = 1  # block row 0, input 0
    weight[5, 1] = -1  # the short block row 1, input 1
    path = write(tmp_path / "m.onnx", [helper.make_node("Conv", ["input", "w"], ["output"], "layer")], {"w": weight})
    (layer,) = densities(path, 4)
    assert (layer.name, layer.op, layer.shape) == ("layer", "conv", (6, 2, 1, 1))
    assert (layer.blocks, layer.zero_blocks, layer.block) == (4, 2, 0.5)
    assert layer.element == pytest.approx(2 / 12)
    assert pattern(path, "layer", 4) == {"layer": "layer", "n": 4, "shape": [6, 2, 1, 1], "rows": ["10", "01"]}
    with pytest.raises(ValueError, match="no layer other; its layers are layer"):
        pattern(path, "other", 4)


def test_depthwise_and_dense_layers_have_outputs_first(tmp_path):
    nodes = [
        helper.make_node("Conv", ["input", "dw"], ["a"], "dw", group=8),
        helper.make_node("Gemm", ["a", "fc"], ["b"], "fc", transB=1),
        helper.make_node("MatMul", ["b", "mm"], ["output"], "mm"),
    ]
    weights = {"dw": np.ones((8, 1, 3, 3)), "fc": np.ones((10, 8)), "mm": np.ones((10, 3))}
    path = write(tmp_path / "m.onnx", nodes, {k: v.astype(np.float32) for k, v in weights.items()})
    assert [(layer.op, layer.shape) for layer in densities(path, 4)] == [
        ("depthwise", (8, 1, 3, 3)),
        ("dense", (10, 8)),
        ("dense", (3, 10)),
    ]


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ONNX file at"):
        densities(tmp_path / "absent.onnx", 4)
    weight = np.ones((64, 64, 3, 3), np.float32)
    path = write(tmp_path / "m.onnx", [helper.make_node("Conv", ["input", "w"], ["output"])], {"w": weight})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not readable as ONNX"):
        densities(path, 4)
    with pytest.raises(ValueError, match="block size is 0"):
        densities(path, 0)
