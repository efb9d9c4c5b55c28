"""Sizes that a file leaves open: what fixes them, and the lines that say which are open."""

import onnx
import pytest
from onnx import TensorProto, helper

from kerf.deploy.frontend import sizes
from kerf.deploy.frontend.onnx_graph import dims
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def network(output=None, **inputs):
    """Of inputs with these sizes; -1 and 0 as some exporters write them."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)]
    nodes = [helper.make_node("Identity", [next(iter(inputs))], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", values, ends))


def fixed(model, shapes=None, batch=None):
    sizes.fix("m.onnx", model, shapes or {}, batch)
    return {value.name: dims(value) for value in (*model.graph.input, *model.graph.output)}


def test_shapes_are_read_from_the_flag():
    assert sizes.shapes_of(["x=1x3x640x640", "a=b:0=7"]) == {"x": (1, 3, 640, 640), "a=b:0": (7,)}
    assert sizes.shapes_of([]) == {}


@pytest.mark.parametrize("text", ["x", "1x3", "x=", "=1x3", "x=1x-3", "x=1x3x", "x=0x3", "x=1,3", "x=axb", "x=1.5"])
def test_a_shape_that_is_none_is_refused_in_one_line(text):
    with pytest.raises(BadInput, match="the input's name and sizes of at least 1, as in --shape NAME=1x3x640x640"):
        sizes.shapes_of([text])
    with pytest.raises(BadInput, match="two shapes"):
        sizes.shapes_of(["x=1", "x=2"])


def test_free_first_sizes_become_the_batch():
    assert fixed(network(x=("n", 3, 8), z=(None, 2)), batch=4) == {"x": (4, 3, 8), "z": (4, 2), "y": None}
    assert fixed(network(x=(-1, 3), z=(0, 2), s=()))["z"] == (1, 2)
    assert fixed(network(x=(2, 3), z=("n", 2)), batch=5) == {"x": (2, 3), "z": (5, 2), "y": None}


def test_a_list_of_no_numbers_stays_one():
    model = network(x=(2, 3), axes=(0,))
    assert fixed(model)["axes"] == (0,)
    assert sizes.free_sizes(model) == {}
    assert fixed(network(x=(0, 3)), {"x": (0, 3)})["x"] == (0, 3)


def test_a_word_is_the_same_number_everywhere():
    found = fixed(network(x=("n", 3, "h", "w"), mask=("n", "h", "w"), output=("n", "h")), {"x": (2, 3, 5, 6)})
    assert found == {"x": (2, 3, 5, 6), "mask": (2, 5, 6), "y": (2, 5)}
    assert fixed(network(x=("n", 3), z=(4, "n")), batch=7)["z"] == (4, 7)


def test_a_question_mark_is_no_word():
    """Paddle's exporter writes it for every free size; height and width are two."""
    assert fixed(network(x=(-1, 3, "?", "?")), {"x": (1, 3, 48, 192)})["x"] == (1, 3, 48, 192)
    assert fixed(network(x=("?", 3), z=("?", 2), output=("?", 3)), {"x": (4, 3)}) == {
        "x": (4, 3),
        "z": (1, 2),
        "y": ("?", 3),
    }


@pytest.mark.parametrize(
    ("shapes", "batch", "line"),
    [
        ({"image": (1, 3, 8, 8)}, None, r"no input 'image'; its inputs are 'x' \('n'x3x'h'x8\), 'z' \(2x'h'\)"),
        ({"x": (1, 3, 8)}, None, "input 'x' is 'n'x3x'h'x8, 4 sizes; --shape gives 1x3x8"),
        ({"x": (1, 4, 8, 8)}, None, "input 'x' cannot be 1x4x8x8: it is 'n'x3x'h'x8"),
        ({"x": (1, 3, 8, 8), "z": (2, 9)}, None, "input 'z' cannot be 2x9: its 'h' is 8 elsewhere"),
        ({"x": (1, 3, 0, 8)}, None, "sizes of at least 1"),
        ({"x": (1, 3, 8, 8)}, 4, "--shape makes the first size of 'x' 1, --batch 4; give one of them"),
    ],
)  # fmt: skip
def test_shapes_that_no_input_can_have_are_refused(shapes, batch, line):
    with pytest.raises(BadInput, match=line) as error:
        fixed(network(x=("n", 3, "h", 8), z=(2, "h")), shapes, batch)
    assert str(error.value).startswith("m.onnx: ")


def test_another_batch_than_the_fixed_one_is_refused():
    with pytest.raises(BadInput, match="input 'x' has batch 1 fixed; asked for 3"):
        fixed(network(x=(1, 3)), batch=3)
    assert fixed(network(x=(3, 3)), batch=3)["x"] == (3, 3)


def test_unknown_ranks_take_a_shape():
    assert sizes.free_sizes(network(x=None)) == {"x": None}
    assert fixed(network(x=None), {"x": (1, 3, 4)})["x"] == (1, 3, 4)


def test_free_sizes_are_told_apart_with_the_flag_that_fixes_them():
    model = network(x=(1, -1, "height", None), z=(2,), u=None)
    assert sizes.free_sizes(model) == {"x": (1, -1, "height", "?"), "u": None}
    line = r"m: sizes are free in 'x' \(1x-1x'height'x\?\), 'u' \(unknown rank\); fix them, e.g. --shape x=1x3x224x224"
    with pytest.raises(BadInput, match=line):
        sizes.refuse_free("m", model)
    sizes.refuse_free("m", network(x=(1, 3)))


def test_inputs_that_are_no_tensors_have_no_sizes():
    model = network(x=(1, 3))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.input.append(helper.make_value_info("parts", kind))
    assert sizes.free_sizes(model) == {}
    with pytest.raises(BadInput, match="input 'parts' is no tensor"):
        fixed(model, {"parts": (1,)})


def test_stored_weights_among_the_inputs_are_none():
    model = network(x=("n", 3), w=("m", 3))
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, (1, 3), [1, 2, 3]))
    assert isinstance(model, onnx.ModelProto)
    assert [value.name for value in sizes.inputs_of(model)] == ["x"]
