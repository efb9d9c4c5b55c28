"""Networks at random, in pieces: kerf's and ONNX Runtime's together compute what ONNX Runtime alone does."""

import onnx
import pytest

from kerf.deploy.frontend.network import KERF
from tests.helpers import random_onnx
from tests.helpers.compiled import checked

SMALL, QUICK = 2, 100  # steps of a network, and how many: compiling takes the time, by the layer
RANGES = [range(first, first + 100) for first in range(0, 2000, 100)]


def wrong(seeds, path, **size) -> dict[int, str]:
    """Those that differ, or cannot be compiled, and why. Most of them have a layer, and so a piece of kerf's."""
    found, own = {}, 0
    for seed in seeds:
        onnx.save(random_onnx.network(seed, **size), str(path))
        try:
            own += KERF in checked(path)
        except Exception as error:
            found[seed] = f"{type(error).__name__}: {error}"
    assert own >= len(seeds) / 2
    return found


@pytest.mark.parametrize("first", range(0, QUICK, 10))
def test_small_networks(tmp_path, first):
    assert wrong(range(first, first + 10), tmp_path / "m.onnx", steps=SMALL) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seeds", RANGES, ids=lambda seeds: f"{seeds.start}-{seeds.stop}")
def test_networks(tmp_path, seeds):
    assert wrong(seeds, tmp_path / "m.onnx") == {}
