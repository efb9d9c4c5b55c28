"""What GPU kernels read: index maps, packed weights, and how images lie."""

from dataclasses import replace

import numpy as np
import pytest
from tvm.target import Target

from kerf.kernels.bsr import BSR
from kerf.kernels.cuda import conv2d_chwn_bsr_panels
from kerf.kernels.cuda.emit import fragments, gather
from kerf.kernels.cuda.layout import from_rows, to_rows
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem

HOPPER = Target({"kind": "cuda", "arch": "sm_90"}, host={"kind": "llvm"})
SAME = (1, 1, 1, 1)


def sample(p: Problem, density: float):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(p.weight_shape).astype(np.float32)
    if p.n:
        rows = -(-p.out_channels // p.n)
        kept = rng.permutation(rows * p.in_channels) < round(density * rows * p.in_channels)
        kept.reshape(rows, -1)[0] &= density == 1  # a row without blocks
        w *= np.repeat(kept.reshape(rows, -1), p.n, axis=0)[: p.out_channels, :, None, None]
        p = replace(p, nnzb=BSR.from_conv(w, p.n).nnzb)
    return p, w, rng.standard_normal(p.in_shape).astype(np.float32)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [16, 32, 64])
def test_lists_hold_every_block_once_and_fill_up_with_zeros(n, density):
    _, w, _ = sample(Problem(2, 19, 5, 5, 100, (3, 3), padding=SAME, n=n, **types_of("f16")), density)
    lists = gather.Lists.of(BSR.from_conv(w, n), 32)
    rebuilt = np.zeros((len(lists.starts) - 1, n, 19, 9), np.float32)
    for row, (first, last) in enumerate(zip(lists.starts, lists.starts[1:], strict=False)):
        for entry in range(first * 32, last * 32):
            rebuilt[row, :, lists.channels[entry], lists.taps[entry]] += lists.weights[entry]
    np.testing.assert_array_equal(rebuilt.reshape(-1, 19, 3, 3)[:100], w)


def test_eight_rows_of_a_matrix_lie_in_different_banks_where_they_can():
    p, w, _ = sample(Problem(16, 128, 5, 5, 32, (3, 3), padding=SAME, n=32, **types_of("f16")), 1.0)
    c = {"down": 1, "across": 4, "warp_pixels": 32, "images": 16, "wide": 2, "channels": 128, "stages": 2}
    offsets = conv2d_chwn_bsr_panels.pack(p, BSR.from_conv(w, 32), c)["offsets"]
    banks = offsets[: 128 * 9].reshape(-1, 8) // 8 % 8
    assert np.mean([len(set(row)) for row in banks]) > 7.9
    assert len(set(offsets)) == 128 * 9, "every entry once"


def test_rows_and_back():
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 2)).astype(np.float32)
    rows = to_rows(x)
    assert rows.shape == (5, 48)
    assert rows[2, (4 * 2 + 1) * 3 + 2] == x[2, 2, 4, 1]
    np.testing.assert_array_equal(from_rows(rows, x.shape), x)


def test_rounding_to_tf32_is_to_the_nearest():
    x = np.float32([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11])
    np.testing.assert_array_equal(fragments.round_to_tf32(x), np.float32([1, 1 + 2**-10, 1 + 2**-10, 1, -1 - 2**-10]))


def test_weights_that_float16_cannot_hold_are_refused():
    weights = np.zeros((16, 16), np.float32)
    weights[3, 4] = -7e4
    with pytest.raises(ValueError, match="70000 is more than float16 holds; use --precision tf32"):
        fragments.pack_weights(fragments.F16, weights)
    assert fragments.pack_weights(fragments.TF32, weights).min() == fragments.round_to_tf32(weights).min()
