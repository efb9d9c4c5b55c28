"""Pieces that dense engines run, opened as a bundle opens them."""

import numpy as np
import pytest

from kerf.deploy.runtime.dense_engine import open_piece
from kerf.errors import Unsupported
from tests.helpers.onnx_files import file, node

pytestmark = pytest.mark.quick


def test_sizes_that_the_piece_has_not_are_refused_in_one_line(tmp_path):
    path = file(tmp_path / "m.onnx", [node("Relu", "x", "y")], {}, shape=(1, 2))
    x = np.array([[-1, 3]], np.float32)
    for size, fits in (((1, 2), True), ((2,), False)):
        y = np.zeros(size, np.float32)
        run = open_piece("onnxruntime", path, {"x": x}, {}, ["y"], 1)
        assert run({}, {})["y"].tolist() == [[0, 3]]
        bound = open_piece("onnxruntime", path, {"x": x}, {"y": y}, [], 1)
        if fits:
            bound({}, {})
            assert y.tolist() == [[0, 3]]
            continue
        with pytest.raises(Unsupported, match=r"cannot run a piece of the network .*; build it again") as refused:
            bound({}, {})
        assert "\n" not in str(refused.value)
