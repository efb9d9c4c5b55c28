import numpy as np
import onnx
import pytest

from kerf.deploy.frontend.convert import convert
from tests.helpers.onnx_networks import Builder, mobile

pytestmark = pytest.mark.quick


def test_layers_are_fused_with_what_follows_them(tmp_path):
    network = convert(mobile(tmp_path / "m.onnx"))
    found = {name: (v.problem.activation, v.problem.residual) for name, v in network.layers.items()}
    assert found == {
        "stem": ("relu6", False),
        "expand": ("hardswish", False),
        "depthwise": ("relu", False),
        "se.reduce": ("relu", False),
        "se.expand": ("hardsigmoid", False),
        "project": ("none", True),
        "spatial": ("silu", False),
        "classifier": ("none", False),
    }
    assert network.sparse_layers == ["expand", "project", "spatial"]
    others = [n.op_type for n in network.graph.nodes if n.domain != "kerf"]
    assert sorted(others) == ["Flatten", "GlobalAveragePool", "GlobalAveragePool", "MaxPool", "Mul"]
    assert [v.shape for v in network.inputs] == [(1, 3, 32, 32)]


@pytest.mark.parametrize(
    ("zero", "asked", "sparse"),
    [(0.5, 0.5, True), (0.5, 0.51, True), (0.5, 0.6, False), (0.25, 0.5, False), (0.9, 0.5, True), (0, 0, False)],
)
def test_share_of_zero_blocks_decides_give_or_take_one_block(tmp_path, zero, asked, sparse):
    b = Builder()
    b.conv("input", "layer", 32, 3, zero_blocks=zero)  # 24 blocks: 0.51 of them is 12.24
    path = b.save(tmp_path / "m.onnx", "layer", out_shape=(1, 32, 32, 32))
    assert bool(convert(path, 4, asked).sparse_layers) is sparse


def test_of_several_heights_a_layer_takes_the_largest_that_its_zeros_fill(tmp_path):
    b, heights = Builder(), {}
    source, width = "input", 3
    for n in (2, 4, 8):
        source = b.conv(source, f"by{n}", 32, width, zero_blocks=0.5, n=n)
        heights[f"by{n}"], width = n, 32
    path = b.save(tmp_path / "m.onnx", source, out_shape=(1, 32, 32, 32))
    found = {name: layer.problem.n for name, layer in convert(path, (2, 4, 8), 0.5).layers.items()}
    assert found == heights
    b = Builder()
    path = b.save(
        tmp_path / "r.onnx", b.conv("input", "by4", 128, 3, zero_blocks=0.75, n=4), out_shape=(1, 128, 32, 32)
    )
    for asked in (0.15, 0.5):  # at random: a good half of the blocks of 8 are zero, too
        assert convert(path, (4, 8, 16), asked).layers["by4"].problem.n == 4
    path = tmp_path / "m.onnx"
    assert {layer.problem.n for layer in convert(path, (1, 2), 0.5).layers.values()} == {2}
    with pytest.raises(ValueError, match="--bsr 4 0: a block has at least one row"):
        convert(path, (4, 0))


@pytest.mark.parametrize(("n", "sparse"), [(2, True), (4, True), (8, False)])  # two groups of four filters
def test_blocks_of_grouped_convolutions_lie_within_a_group(tmp_path, n, sparse):
    b = Builder()
    b.conv("input", "a", 8, 3)
    b.conv("a", "grouped", 8, 4, 3, zero_blocks=0.5, n=n, group=2)
    b.conv("grouped", "deep", 8, 1, 3, zero_blocks=0.5, n=1, group=8)
    path = b.save(tmp_path / "m.onnx", "deep", out_shape=(1, 8, 32, 32))
    layers = convert(path, n).layers
    assert [layers[name].problem.n for name in ("grouped", "deep")] == [n if sparse else 0, 0]


def test_zeros_out_of_blocks_do_not_count(tmp_path):
    b = Builder()
    b.conv("input", "layer", 32, 3)
    w = onnx.numpy_helper.to_array(b.constants[0]).copy()
    w[::2] = 0
    b.constants[0] = onnx.numpy_helper.from_array(w, "layer.weight")
    path = b.save(tmp_path / "m.onnx", "layer", out_shape=(1, 32, 32, 32))
    assert not convert(path, 4, 0.5).sparse_layers
    assert convert(path, 1, 0.5).sparse_layers == ["layer"]


def test_a_tensor_that_others_read_is_not_swallowed(tmp_path):
    b = Builder()
    x = b.conv("input", "a", 8, 3)
    y = b.node("Relu", [x], "relu")
    b.node("Add", [x, y], "sum")
    network = convert(b.save(tmp_path / "m.onnx", "sum", out_shape=(1, 8, 32, 32)))
    assert network.layers["a"].problem.activation == "none"
    assert [n.op_type for n in network.graph.nodes] == ["Layer", "Relu", "Add"]


def test_both_branches_of_a_residual_are_layers_in_a_valid_order(tmp_path):
    b = Builder()
    left = b.conv("input", "left", 8, 3)
    right = b.conv("input", "right", 8, 3)
    b.node("Relu", [b.node("Add", [left, right], "sum")], "relu")
    network = convert(b.save(tmp_path / "m.onnx", "relu", out_shape=(1, 8, 32, 32)))
    produced = {"input"}
    for node in network.graph.nodes:
        assert set(node.input) <= produced
        produced |= set(node.output)
    assert [v.problem.residual for v in network.layers.values()].count(True) == 1


def test_open_batch_size_is_set_and_fixed_one_is_kept(tmp_path):
    assert convert(mobile(tmp_path / "m.onnx", batch="n"), batch=3).inputs[0].shape[0] == 3
    assert convert(mobile(tmp_path / "m.onnx", batch="n")).inputs[0].shape[0] == 1
    with pytest.raises(ValueError, match="has batch 1 fixed; asked for 3"):
        convert(mobile(tmp_path / "m.onnx"), batch=3)


def test_bad_files_are_named_in_one_line(tmp_path):
    path = mobile(tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx: no such file"):
        convert(tmp_path / "none.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.onnx: not a readable ONNX model") as error:
        convert(cut)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--bsr 0"):
        convert(path, 0)
    with pytest.raises(ValueError, match=r"--sparsity 50"):
        convert(path, 4, 50)
    model = onnx.load(str(path))
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(ValueError, match=r"weight 'stem\.weight' holds NaN"):
        convert(tmp_path / "nan.onnx")


def dense_network(tmp_path, nodes, constants, shape=(4, 3), out_shape=(4, 4)):
    b = Builder()
    for name, array in constants.items():
        b.constant(name, array)
    for op, inputs, name, attributes in nodes:
        b.node(op, inputs, name, **attributes)
    return b.save(tmp_path / "m.onnx", nodes[-1][2], shape=shape, out_shape=out_shape)


W34 = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("nodes", "constants", "layer", "left"),
    [
        ([("MatMul", ["input", "w"], "y", {})], {"w": W34}, True, []),
        ([("Gemm", ["input", "w"], "y", {})], {"w": W34}, True, []),
        ([("Gemm", ["input", "w"], "y", {"transB": 1})], {"w": W34.T}, True, []),
        ([("Gemm", ["input", "w", "b"], "y", {})], {"w": W34, "b": np.ones((1, 4))}, True, []),
        ([("Gemm", ["input", "w", "b"], "y", {})], {"w": W34, "b": np.ones((4, 1))}, False, ["Gemm"]),
        ([("Gemm", ["input", "w"], "y", {"alpha": 2.0})], {"w": W34}, False, ["Gemm"]),
        ([("MatMul", ["input", "w"], "m", {}), ("Add", ["m", "b"], "y", {})], {"w": W34, "b": np.ones(4)}, True, []),
        ([("MatMul", ["input", "w"], "m", {}), ("Add", ["b", "m"], "y", {})], {"w": W34, "b": np.ones(4)}, True, []),
        (
            [("MatMul", ["input", "w"], "m", {}), ("Add", ["m", "b"], "y", {})],
            {"w": W34, "b": np.ones((4, 1))},
            True,
            ["Add"],
        ),
        ([("MatMul", ["input", "w"], "m", {}), ("Add", ["m", "m"], "y", {})], {"w": W34}, True, ["Add"]),
    ],
)
def test_dense_layers_are_read_right_or_left_alone(tmp_path, nodes, constants, layer, left):
    path = dense_network(tmp_path, nodes, constants)
    network = convert(path)
    if not layer:
        assert not network.layers
        return
    (found,) = network.layers.values()
    np.testing.assert_array_equal(found.weight[:, :, 0, 0], W34.T)
    assert found.bias.sum() == (4 if "b" in constants and not left else 0)
    assert [n.op_type for n in network.graph.nodes if n.domain != "kerf"] == left


@pytest.mark.parametrize(
    ("bounds", "activation"),
    [
        (("0", "6"), "relu6"),
        (("0", ""), "relu"),
        (("0",), "relu"),
        (("0", "5"), "clip"),
        (("", "5"), "clip"),
        (("0", "computed"), "none"),
    ],
)
def test_clip_is_an_activation_only_with_constant_known_bounds(tmp_path, bounds, activation):
    b = Builder()
    x = b.conv("input", "c", 4, 3)
    for value in ("0", "5", "6"):
        b.constant(value, float(value))
    if "computed" in bounds:
        b.node("ReduceMax", ["input"], "computed", keepdims=0)
    b.node("Clip", [x, *bounds], "y")
    network = convert(b.save(tmp_path / "m.onnx", "y", out_shape=(1, 4, 32, 32)))
    assert network.layers["c"].problem.activation == activation
    assert ("Clip" in {n.op_type for n in network.graph.nodes}) is (activation == "none")


@pytest.mark.parametrize(
    ("mode", "padding"), [("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0)), ("VALID", (0,) * 4)]
)
def test_auto_pad(tmp_path, mode, padding):
    b = Builder()
    w = b.constant("w", np.ones((4, 3, 3, 3)))
    b.node("Conv", ["input", w], "y", auto_pad=mode, strides=[2, 2])
    side = 15 if mode == "VALID" else 16
    network = convert(b.save(tmp_path / "m.onnx", "y", out_shape=(1, 4, side, side)))
    assert network.layers["y"].problem.padding == padding
    assert network.layers["y"].problem.out_shape == (1, 4, side, side)


def test_inputs_of_any_type_are_told(tmp_path):
    path = mobile(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    next(node for node in model.graph.node if node.name == "stem").input[0] = "floats"
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["input"], ["floats"], to=onnx.TensorProto.FLOAT))
    onnx.save(model, str(path))
    (image,) = convert(path).inputs
    assert (image.dtype, image.shape) == ("uint8", (1, 3, 32, 32))
