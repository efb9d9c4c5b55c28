import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kerf.deploy.frontend.zero_blocks import LINEAR, zero_blocks
from kerf.kernels.bsr import kept_blocks
from tests.helpers.onnx_networks import Builder

pytestmark = pytest.mark.quick


def vision(path):
    """A patch embedding, a convolution, tokens through a MatMul and a Gemm of either layout, a classifier."""
    b, normal = Builder(), Builder().rng.standard_normal
    x = b.conv("input", "stem", 8, 3)
    x = b.conv(x, "conv", 8, 8)
    x = b.node("Reshape", [x, b.integers("rows", [-1, 8])], "tokens")
    x = b.node("MatMul", [x, b.constant("matmul", normal((8, 12)))], "m")
    x = b.node("Gemm", [x, b.constant("gemm", normal((16, 12)))], "g", transB=1)
    x = b.node("Gemm", [x, b.constant("gemm.io", normal((16, 8)))], "h")
    x = b.node("Relu", [b.node("MatMul", [x, b.constant("classifier", normal((8, 4)))], "c")], "y")
    return onnx.load(str(b.save(path, x, (1, 3, 4, 4), (16, 4))))


def zeros(model):
    """Share of zero blocks of four outputs, of those that have any."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {k: v for k, v in stored.items() if v.ndim > 1}
    shares = {
        k: 1 - kept_blocks(v.T if k in ("matmul", "gemm.io", "classifier") else v, 4).mean() for k, v in weights.items()
    }
    return {k: share for k, share in shares.items() if share}


def test_linear_layers_are_pruned_where_they_are_asked_for_but_for_the_classifier(tmp_path):
    model = vision(tmp_path / "m.onnx")
    zero_blocks(model, 4, 0.5, "m.onnx")
    assert zeros(model) == {"conv.weight": 0.5}
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    zero_blocks(model, 4, 0.5, "m.onnx", ("Conv", *LINEAR))
    assert zeros(model) == dict.fromkeys(("conv.weight", "matmul", "gemm", "gemm.io"), 0.5)
    for tensor in model.graph.initializer:
        after = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(after, np.where(after == 0, 0, before[tensor.name]))


def test_nothing_to_prune_and_other_operators_are_refused(tmp_path):
    model = vision(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"m\.onnx: no blocks in Relu; expected Conv, ConvTranspose, Gemm or MatMul"):
        zero_blocks(model, 4, 0.5, "m.onnx", ("Relu",))
    del model.graph.node[1:]
    for layers, what in ((("Conv",), "convolution"), (LINEAR, "layer")):
        with pytest.raises(ValueError, match=rf"m\.onnx: no {what} to prune"):
            zero_blocks(model, 4, 0.5, "m.onnx", layers)


def test_blocks_of_a_transposed_convolution_are_rows_of_its_outputs(tmp_path):
    b = Builder()
    x = b.conv("input", "stem", 8, 3)
    x = b.node("ConvTranspose", [x, b.constant("up", b.rng.standard_normal((8, 12, 4, 4)))], "t", strides=[2, 2])
    b.node("ConvTranspose", [x, b.constant("grouped", b.rng.standard_normal((12, 2, 1, 1)))], "y", group=6)
    model = onnx.load(str(b.save(tmp_path / "m.onnx", "y", (1, 3, 4, 4), (1, 12, 10, 10))))
    zero_blocks(model, 4, 0.5, "m.onnx", ("ConvTranspose",))
    (up,) = (numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "up")
    assert kept_blocks(up.swapaxes(0, 1), 4).mean() == 0.5
    grouped = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "grouped")
    assert grouped.all()
