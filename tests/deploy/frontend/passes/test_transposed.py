"""Transposed convolutions as convolutions: the same outputs for every kernel, stride and padding."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.samples import draw
from kerf.deploy.measure.verify import verify
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.plain import plain
from kerf.deploy.plans import steps
from tests.helpers.interpreted import interpreted, whole
from tests.helpers.onnx_files import file, node

TARGET = targets.parse("native", 1)
RNG = np.random.default_rng(0)


def written(path, k, s, p, more=0, norm=False, relu=False, shape=(2, 3, 5, 4), **attributes):
    constants = {"w": RNG.standard_normal((3, 4, k, k)), "b": RNG.standard_normal(4)}
    attributes = dict(strides=[s, s], pads=[p] * 4, output_padding=[more] * 2) | attributes
    nodes, last = [node("ConvTranspose", "x w b", "t", **attributes)], "t"
    if norm:
        constants |= {name: RNG.uniform(0.5, 1, 4) for name in ("gamma", "beta", "mean", "var")}
        nodes.append(node("BatchNormalization", f"{last} gamma beta mean var", "n"))
        last = "n"
    if relu:
        nodes.append(node("Relu", last, "r"))
        last = "r"
    nodes.append(node("Neg", last, "y"))
    return file(path, nodes, {k: v.astype(np.float32) for k, v in constants.items()}, shape=shape)


def operators(network):
    return Counter(n.op_type for n in network.graph.nodes)


CASES = [
    (k, s, p, more)
    for k, s, p, more in product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1))
    if more < s and 2 * p <= k
]


@pytest.mark.parametrize(("k", "s", "p", "more"), CASES)
def test_outputs_are_those_of_the_node(tmp_path, k, s, p, more):
    path = written(tmp_path / "m.onnx", k, s, p, more, norm=k % 2 == 0, relu=p == 1)
    network = convert(path)
    rows = s * 4 + more + k - 2 * p
    columns = s * 3 + more + k - 2 * p
    assert (operators(network)["ConvTranspose"] == 0) == (rows % s == columns % s == 0)
    feed = draw(network.inputs, np.random.default_rng(1))
    (y,), (truth,) = interpreted(network, feed).values(), whole(str(path), feed)
    np.testing.assert_allclose(y, truth, atol=1e-5)


@pytest.mark.parametrize(("k", "layers"), [(2, 1), (4, 4)])
def test_phases_that_read_the_same_pixels_are_one_layer(tmp_path, k, layers):
    found = operators(convert(written(tmp_path / "m.onnx", k, 2, k // 2 - 1, norm=True, relu=True)))
    assert found == {"Layer": layers, "DepthToSpace": 1, "Neg": 1} | ({"Concat": 1} if layers > 1 else {})


def test_zero_blocks_are_those_of_the_weight(tmp_path):
    constants = {"w": RNG.standard_normal((8, 8, 4, 4)).astype(np.float32)}
    kept = RNG.random((8, 2)) < 0.5
    constants["w"] *= np.repeat(kept, 4, axis=1)[:, :, None, None]
    nodes = [node("ConvTranspose", "x w", "y", strides=[2, 2], pads=[1] * 4)]
    network = convert(file(tmp_path / "m.onnx", nodes, constants, shape=(1, 8, 6, 6)), 4, 0.3)
    assert [(v.problem.n, v.problem.nnzb) for v in network.layers.values()] == [(4, kept.sum())] * 4


@pytest.mark.parametrize(
    "attributes",
    [
        dict(group=3),
        dict(dilations=[2, 2]),
        dict(auto_pad="SAME_UPPER"),
        dict(strides=[2, 1]),
        dict(output_shape=[9, 7]),
    ],
    ids=str,
)
def test_what_stays(tmp_path, attributes):
    constants = {"w": RNG.standard_normal((3, 4 if "group" not in attributes else 1, 3, 3)).astype(np.float32)}
    given = dict(strides=[2, 2], pads=[1] * 4) | attributes
    if given.keys() & {"auto_pad", "output_shape"}:
        del given["pads"]
    path = file(tmp_path / "m.onnx", [node("ConvTranspose", "x w", "y", **given)], constants, shape=(2, 3, 5, 4))
    assert operators(convert(path)) == {"ConvTranspose": 1}


def test_dense_engines_get_the_node_of_the_file_and_the_network_is_verified(tmp_path):
    path = written(tmp_path / "m.onnx", 4, 2, 1, norm=True, relu=True)
    network = convert(path)
    alone = plain(network, "onnxruntime")
    model = onnx_piece.model(alone.graph, alone.pieces[0])
    assert "ConvTranspose" in {n.op_type for n in model.graph.node}
    session = steps.session(network, build(network, TARGET, RecordBook()), 1)
    verify(session.run, path, network.inputs)


def test_a_wrong_phase_is_named(tmp_path):
    network = convert(written(tmp_path / "m.onnx", 4, 2, 1, norm=True, relu=True))
    built = build(network, TARGET, RecordBook())
    assert blame(network, built) == []
    name, layer = next(iter(network.layers.items()))
    broken = {**network.layers, name: replace(layer, bias=layer.bias + 1)}
    (line,) = blame(replace(network, layers=broken), built)
    assert line.startswith(f"{name} (")
