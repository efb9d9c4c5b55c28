"""Networks at random: cleaned and converted, they are what they were."""

from collections import Counter

import numpy as np
import onnx
import pytest

from kerf.deploy.frontend import clean
from kerf.deploy.frontend.convert import layers_of
from tests.helpers import random_onnx
from tests.helpers.onnx_files import same, session


@pytest.mark.parametrize("seed", range(40))
def test_cleaning_changes_nothing_and_layers_are_found(tmp_path, seed):
    model = random_onnx.network(seed)
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    cleaned = same(path)
    assert {n.name for n in cleaned.graph.node} <= {n.name for n in model.graph.node}
    graph = clean.read_graph(path)
    assert all(graph.fixed_shape(name) for n in graph.nodes for name in n.output)
    layers = layers_of(path, graph)
    convolutions = {n.name for n in model.graph.node if n.op_type == "Conv"}
    assert {name for name, layer in layers.items() if layer.op == "conv" and name in convolutions} == convolutions


def test_networks_differ_and_are_the_same_for_the_same_seed():
    models = [random_onnx.network(seed) for seed in range(60)]
    assert models[3] == random_onnx.network(3)
    operators = Counter(n.op_type for m in models for n in m.graph.node)
    assert len(operators) > 30
    assert {len(m.graph.input) for m in models} == {1, 2}
    assert {len(m.graph.output) for m in models} == {1, 2, 3}
    for model in models[:20]:  # numbers stay in a range where errors show
        feeds = {i.name: np.ones(i.shape, np.float32) for i in session(model).get_inputs()}
        for y in session(model).run(None, feeds):
            assert np.isfinite(y).all()
            assert np.abs(y).max() < 1e4
