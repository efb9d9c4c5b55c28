"""Which sums of quantised networks are in the layer in front of them, and that nothing else comes out for it."""

from collections import Counter

import numpy as np
import pytest

from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.samples import draw
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.plain import plain
from kerf.kernels.tensor_type import F32
from tests.helpers.interpreted import interpreted, whole
from tests.helpers.onnx_files import file
from tests.helpers.quantised_files import NETWORKS, quantised
from tests.helpers.quantised_nodes import Drawn
from tests.helpers.sums_apart import sums_apart

SHAPE = (1, 6, 9, 8)


def apart(path):
    with sums_apart():
        return convert(path)


def checked(path):
    """(the network, operators that are left), once its outputs were compared with those of the network without sums."""
    network = convert(path)
    feed = draw(network.inputs, np.random.default_rng(0), 2)
    for y, truth in zip(interpreted(network, feed).values(), interpreted(apart(path), feed).values(), strict=True):
        assert y.std() > 0
        np.testing.assert_array_equal(y, truth)
    assert list(network.layers) == [n.name for n in network.graph.nodes if n.op_type == "Layer"]
    return network, Counter(n.op_type for n in network.graph.nodes)


@pytest.mark.parametrize(
    "how", [dict(), dict(activations="i8"), dict(form="qoperator", activations="i8", per_channel=False)], ids=str
)
@pytest.mark.parametrize(("which", "sums"), [("residual", 2), ("mobile", 1)])
def test_a_network_has_no_sum_of_its_own(tmp_path, which, sums, how):
    path = quantised(NETWORKS[which](tmp_path / "f.onnx"), tmp_path / "q.onnx", **how)
    network, left = checked(path)
    assert left["Add"] == 0
    assert Counter(n.op_type for n in apart(path).graph.nodes)["Add"] == sums
    assert sum(layer.problem.middle is not None for layer in network.layers.values()) == sums


def conv(d, name="c", zero=90, **numbers):
    """Of the input, quantised with a residual's usual numbers."""
    d.add("Conv", f"{d.pair('x', name + '.a')} {d.weight(name + '.w', (6, 6, 1, 1))}", f"{name}.f")
    return d.pair(f"{name}.f", name, **(dict(scale=0.0203, zero=zero) | numbers))


def other(d):
    return d.pair("x", "r", scale=0.0311, zero=128)


def alone(d):
    d.pair(d.add("Add", f"{conv(d)} {other(d)}", "s"), "y", scale=0.0417, zero=100)


def behind(d):
    """The layer's result as the second operand, and a Relu."""
    d.add("Add", f"{other(d)} {conv(d)}", "s")
    d.pair(d.add("Relu", "s", "t"), "y", scale=0.0203, zero=0)


def of_two(d):
    d.pair(d.add("Add", f"{conv(d)} {conv(d, 'e', 128, scale=0.0307)}", "s"), "y", scale=0.0417, zero=100)


def of_floats(d):
    d.add("Add", f"{conv(d)} {d.add('HardSwish', 'x', 'h')}", "s")
    d.pair("s", "y", scale=0.0417, zero=100)


def of_the_input_of_the_layer(d):
    d.pair("x", "a")
    d.add("Conv", f"a {d.weight('w', (6, 6, 1, 1))}", "f")
    d.add("Add", f"a {d.pair('f', 'c', scale=0.0203)}", "s")
    low, high = d.constant("low", np.float32(-1.53)), d.constant("high", np.float32(2.2))
    d.pair(d.add("Clip", f"s {low} {high}", "t"), "y", scale=0.0307, zero=101)


def of_a_relu(d):
    """Which the bounds of the bytes are, since zero is the least of them."""
    d.add("Conv", f"{d.pair('x', 'a')} {d.weight('w', (6, 6, 1, 1))}", "f")
    d.pair(d.add("Relu", "f", "g"), "c", scale=0.0103, zero=0)
    d.pair(d.add("Add", f"c {other(d)}", "s"), "y", scale=0.0417, zero=100)


def grouped(d):
    d.add("Conv", f"{d.pair('x', 'a')} {d.weight('w', (6, 1, 3, 3))}", "f", group=6, pads=[1, 1, 1, 1])
    d.pair(d.add("Add", f"{d.pair('f', 'c', scale=0.0103)} {other(d)}", "s"), "y", scale=0.0417, zero=100)


TAKEN = {f.__name__: f for f in (alone, behind, of_two, of_floats, of_the_input_of_the_layer, of_a_relu, grouped)}


@pytest.mark.parametrize("name", TAKEN)
def test_sums_in_their_layer(tmp_path, name):
    d = Drawn()
    TAKEN[name](d)
    network, left = checked(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE))
    assert left["Add"] == 0
    *_, last = network.layers.values()
    assert (last.problem.residual, last.problem.y.dtype) == (True, "u8")
    assert last.problem.residual_type == (F32 if name == "of_floats" else None)
    assert last.types["middle"].scale == np.float32(0.0103 if name in ("of_a_relu", "grouped") else 0.0203)


@pytest.mark.parametrize("name", ["of_two", "behind", "of_floats"])
def test_dense_engines_get_the_nodes_of_the_file(tmp_path, name):
    d = Drawn()
    TAKEN[name](d)
    path = file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE)
    network = convert(path)
    model = onnx_piece.model(network.graph, plain(network, "onnxruntime").pieces[0])
    assert "Add" in {n.op_type for n in model.graph.node}
    feed = draw(network.inputs, np.random.default_rng(0))
    np.testing.assert_array_equal(whole(model, feed)[0], whole(str(path), feed)[0])


def read_twice(d):
    d.add("Add", f"{conv(d)} {other(d)}", "s")
    d.pair(d.add("Add", f"{d.pair('s', 't', scale=0.0417)} {d.dq('c.q', 'again', scale=0.0203, zero=90)}", "u"), "y")


def an_output(d):
    d.add("Identity", d.add("Add", f"{conv(d)} {other(d)}", "s"), "y")


def silu(d):
    d.add("Add", f"{conv(d)} {other(d)}", "s")
    d.pair(d.add("Mul", f"s {d.add('Sigmoid', 's', 'g')}", "t"), "y", scale=0.0417)


def of_a_relu_within_the_bytes(d):
    d.add("Conv", f"{d.pair('x', 'a')} {d.weight('w', (6, 6, 1, 1))}", "f")
    d.pair(d.add("Relu", "f", "g"), "c", scale=0.0103, zero=50)
    d.pair(d.add("Add", f"c {other(d)}", "s"), "y", scale=0.0417, zero=100)


def read_with_another_scale(d):
    d.add("Conv", f"{d.pair('x', 'a')} {d.weight('w', (6, 6, 1, 1))}", "f")
    d.dq(d.q("f", "c.q", scale=0.0203), "c", scale=0.0307)
    d.pair(d.add("Add", f"c {other(d)}", "s"), "y", scale=0.0417, zero=100)


def of_a_plane(d):
    d.add("GlobalAveragePool", "x", "m")
    d.pair(d.add("Add", f"{conv(d)} {d.pair('m', 'r')}", "s"), "y", scale=0.0417, zero=100)


def of_itself(d):
    d.pair(d.add("Add", f"{conv(d)} c", "s"), "y", scale=0.0417, zero=100)


def of_unheard_of_scales(d):
    d.pair(d.add("Add", f"{conv(d, scale=1e-20)} {other(d)}", "s"), "y", scale=0.0417, zero=100)


def of_halves(d):
    """Every fortieth pair or so lies between two bytes, and float32 rounds it as it falls: no two products do."""
    r = d.pair("x", "r", scale=0.031, zero=128)
    d.pair(d.add("Add", f"{conv(d, scale=0.02)} {r}", "s"), "y", scale=0.04, zero=100)


LEFT = (read_twice, an_output, silu, of_a_relu_within_the_bytes, read_with_another_scale)
LEFT = {f.__name__: f for f in (*LEFT, of_a_plane, of_itself, of_unheard_of_scales, of_halves)}


@pytest.mark.parametrize("name", LEFT)
def test_sums_that_stay(tmp_path, name):
    d = Drawn()
    LEFT[name](d)
    network, left = checked(file(tmp_path / "m.onnx", d.nodes, d.constants, shape=SHAPE))
    assert left["Add"] == (2 if name == "read_twice" else 1)
    assert not any(layer.problem.middle for layer in network.layers.values())
