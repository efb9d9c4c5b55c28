"""Convolutions of bytes whose taps are channels, where three channels would take the place of four."""

import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features

from kerf.kernels.cpu.int8 import conv2d_nchw_dense_quads
from kerf.kernels.tensor_type import F32
from tests.kernels.cpu.test_int8 import HOST, PROBLEMS, SAME, compare, layer, problem, run

AVX2 = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})
FOLDED = {
    "stem": PROBLEMS["stem"],
    "stem of a row": problem(1, 3, 40, 130, 14, (3, 3), (2, 2), SAME, activation="relu6"),
    "one channel": problem(2, 1, 12, 15, 6, (3, 5), (2, 1), (0, 1, 2, 0), (2, 1), residual=True),
    "five channels": problem(1, 5, 11, 11, 8, (5, 5), padding=(2, 2, 2, 2), y=F32),
}


@pytest.mark.parametrize("target", [HOST, *([AVX2] if "avx2" in llvm_get_cpu_features(HOST) else [])], ids=str)
@pytest.mark.parametrize("name", FOLDED)
def test_taps_as_channels(name, target):
    """Where three channels would take the place of four."""
    p, given = FOLDED[name], layer(FOLDED[name])
    configs = conv2d_nchw_dense_quads.configs(p, target)
    folded = [c for c in configs if "fold" in c]
    assert configs[0] == folded[0]
    for c in (folded[0], folded[-1]):
        compare(run(conv2d_nchw_dense_quads, p, c, given, target), p, given)
