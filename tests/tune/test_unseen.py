"""Layers of networks that nobody has tuned for. A file of its own, so that two workers share what searches take."""

import numpy as np
import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.tune.search import search
from tests.helpers.onnx_networks import Builder


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("seed", range(4))
def test_layers_never_seen_before_tune_without_an_error(tmp_path, seed):
    """Primes, blocks of 16 with a remainder, strides, paddings that do not match, any sparsity, two threads."""
    rng = np.random.default_rng(seed)
    n = (16, 5, 7, 16)[seed]
    b, x, channels, size = Builder(seed), "input", 3, [31, 23]
    for i in range(3):
        out, k = int(rng.choice([17, 29, 37, 43])), int(rng.choice([1, 3, 5]))
        share = float(rng.uniform(0.2, 0.99))
        pads = [int(pad) for pad in rng.integers(0, k, 4)]
        strides = [int(s) for s in rng.integers(1, 3, 2)]
        x = b.conv(x, f"c{i}", out, channels, k, share, n, pads=pads, strides=strides)
        size = [(size[d] + pads[d] + pads[d + 2] - k) // strides[d] + 1 for d in range(2)]
        channels = out
    path = b.save(tmp_path / "m.onnx", x, shape=(1, 3, 31, 23), out_shape=(1, channels, *size))
    target = targets.parse("native", 1 + seed % 2)
    network = convert(path, n, 0.15)
    summary = search(network, target, 1 + seed % 2, RecordBook(), trials=25)
    assert summary.failed == 0
    assert summary.measured == 25
