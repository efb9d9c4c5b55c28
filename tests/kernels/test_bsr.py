import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerf.kernels.bsr import BSR, kept_blocks, spread

pytestmark = pytest.mark.quick


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 23), cols=st.integers(1, 9), bm=st.integers(1, 9), bk=st.integers(1, 5), seed=st.integers(0, 9))
def test_round_trip(m, cols, bm, bk, seed):
    w = np.random.default_rng(seed).integers(-1, 2, (m, cols * bk)).astype(np.float32)
    bsr = BSR.from_dense(w, (bm, bk))
    np.testing.assert_array_equal(bsr.to_dense(), w)
    assert bsr.block == (bm, bk)
    assert all(np.all(np.diff(bsr.indices[a:b]) > 0) for a, b in zip(bsr.indptr, bsr.indptr[1:]))
    assert np.any(bsr.data, axis=(1, 2)).all()  # no empty block is stored


def test_short_last_row_does_not_straddle():
    w = np.zeros((6, 3), np.float32)
    w[4:, 1] = 1
    bsr = BSR.from_dense(w, (4, 1))
    assert (bsr.nnzb, bsr.indices.tolist(), bsr.indptr.tolist()) == (1, [1], [0, 0, 1])
    np.testing.assert_array_equal(bsr.data[0, :, 0], [1, 1, 0, 0])
    assert bsr.density == pytest.approx(1 / 6)


def test_conv_blocks_hold_all_taps_of_one_input_channel():
    w = np.zeros((4, 3, 3, 3), np.float32)
    w[1, 2, 0, 0] = 5
    bsr = BSR.from_conv(w, 4)
    assert (bsr.nnzb, bsr.indices.tolist(), bsr.block) == (1, [2], (4, 9))


def test_block_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="bk must divide K"):
        BSR.from_dense(np.zeros((4, 10), np.float32), (2, 3))


@settings(deadline=None, max_examples=40)
@given(o=st.integers(1, 23), i=st.integers(1, 6), n=st.integers(1, 9), seed=st.integers(0, 9))
def test_what_is_spread_is_what_is_kept(o, i, n, seed):
    rng = np.random.default_rng(seed)
    kept = rng.random((-(-o // n), i)) < 0.5
    weight = spread(kept, np.ones((o, i, 3, 3), np.float32), n)
    np.testing.assert_array_equal(kept_blocks(weight, n), kept)
    for r, c in np.ndindex(kept.shape):
        assert (weight[r * n : (r + 1) * n, c] == kept[r, c]).all()
