"""Blocks in torch, where they are pruned, and in numpy, where they are stored, are the same blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kerf.compress.network.blocks import blocks
from kerf.kernels.bsr import BSR, kept_blocks

pytestmark = pytest.mark.quick


@settings(deadline=None, max_examples=40)
@given(
    outputs=st.integers(1, 23),
    inputs=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (1, 5)]),
    n=st.integers(1, 30),
    seed=st.integers(0, 9),
)
def test_both_see_the_same_blocks(outputs, inputs, kernel, n, seed):
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((outputs, inputs, *kernel)) < 0.1, 1, 0).astype(np.float32)
    kept = kept_blocks(weight, n)
    assert kept.shape == (-(-outputs // n), inputs)
    np.testing.assert_array_equal(blocks(torch.from_numpy(weight), n).any(-1).numpy(), kept)
    taps = weight[0, 0].size
    stored = BSR.from_dense(weight.reshape(outputs, -1), (n, taps))
    assert stored.nnzb == kept.sum()
    np.testing.assert_array_equal(stored.indices, np.nonzero(kept)[1])
