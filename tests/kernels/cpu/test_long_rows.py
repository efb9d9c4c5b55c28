"""Images of a few long rows, as sound is: the code of a kernel does not grow with them."""

from dataclasses import replace

import numpy as np
import pytest
from tvm.target import Target

from kerf.kernels.backends import CPU
from kerf.kernels.cpu import moves, planewise
from kerf.kernels.kernel import candidates
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import TensorType

TARGETS = {
    "avx512": Target({"kind": "llvm", "mcpu": "sapphirerapids"}),
    "avx2": Target({"kind": "llvm", "mcpu": "x86-64-v3"}),
    "neon": Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}),
}
SHORT, LONG = 4_000, 400_000  # pixels
SAME = (0, 1, 0, 1)
BYTES, WEIGHTS = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
FLOATS = {
    "dense": Problem(1, 3, 1, SHORT, 8, (1, 3), padding=SAME),
    "strided": Problem(1, 3, 1, SHORT, 8, (1, 3), (1, 2), SAME),
    "sparse": Problem(1, 8, 1, SHORT, 8, (1, 3), padding=SAME, n=4, nnzb=8),
    "of one pixel": Problem(1, 8, 1, SHORT, 8, n=4, nnzb=8),
    "depthwise": Problem(1, 3, 1, SHORT, 3, (1, 3), padding=SAME, groups=3),
}
LAYERS = {**FLOATS, **{f"{name}, bytes": replace(p, x=BYTES, w=WEIGHTS, y=BYTES) for name, p in FLOATS.items()}}
POOL = Problem(1, 3, 1, SHORT, 3, (1, 3), padding=SAME, groups=3)


def long(p: Problem) -> Problem:
    return replace(p, width=LONG)


def lines(func) -> int:
    """Of its script: a statement each."""
    return len(func.script().splitlines())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("p", LAYERS.values(), ids=LAYERS)
def test_of_layers(p, target):
    takers = list(candidates(CPU.kernels, long(p), target))
    assert takers
    for taker in takers:
        for config in taker.kernel.configs(taker.problem, target)[:3]:
            size = lines(taker.kernel.prim_func(taker.problem, config, target))
            assert size < 3000, (taker.kernel.name, config, size)


def _stretched(target):
    shape, out = (1, 3, 1, SHORT), (1, 8 * SHORT)
    rows, columns = np.zeros(1), (np.arange(out[1]) + 0.5) / 8 - 0.5
    return moves.interpolate(moves.tables(rows, columns, shape, target), out, shape, target)


def test_of_moves_and_pools():
    target = TARGETS["avx512"]
    made = {
        "pool": planewise.max_pool(long(POOL), target),
        "nearest": moves.enlarge((1, 2), (1, 3, 1, LONG), target),
        "to planes": planewise.to_planes((1, 3, 1, LONG), target),
        "between": _stretched(target),
    }
    sizes = {name: lines(func) for name, func in made.items()}
    assert max(sizes.values()) < 100, sizes
