"""Two products in place of ONNX's nodes: equal for every two bytes, and refused where they are not."""

import numpy as np
import pytest

from kerf.kernels import reference
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.pair import products
from kerf.kernels.tensor_type import INTEGERS, TensorType


def every(m, r):
    one, other = (np.arange(low, high + 1) for low, high in (INTEGERS[m.dtype], INTEGERS[r.dtype]))
    return np.meshgrid(one, other)


def nodes(m, r, y, clip):
    one, other = every(m, r)
    value = reference.dequantise(one, m) + reference.dequantise(other, r)
    return reference.quantise(reference.activate(clip, value), y)


def drawn(seed):
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-5, 1) + rng.uniform(-0.8, 0.8, 3)).astype(np.float32)
    zeros = rng.integers(0, 256, 3)
    kinds = "i8" if seed % 3 == 1 else "u8", "u8", "u8"
    lows = [INTEGERS[kind][0] for kind in kinds]
    types = [TensorType(k, float(s), int(z) + low) for k, s, z, low in zip(kinds, scales, zeros, lows)]
    clip = [Activation(), Activation("relu"), Activation("clip", -0.4 * float(scales[0]), 9.5 * float(scales[1]))][
        seed % 3
    ]
    return *types, clip


@pytest.mark.parametrize("seed", range(30))
def test_every_pair_of_integers_is_what_the_nodes_give(seed):
    m, r, y, clip = drawn(seed)
    found = products(m, r, y, clip)
    assert found is not None
    a, b, c = (np.float64(v) for v in found)
    one, other = every(m, r)
    inner = (other * b + c).astype(np.float32).astype(np.float64)
    truth = nodes(m, r, y, clip)
    steps = np.rint(((one - m.zero) * a + inner).astype(np.float32))
    np.testing.assert_array_equal(np.clip(steps, truth.min(), truth.max()), truth)


@pytest.mark.parametrize(
    "scales", [(0.02, 0.031, 0.04), (0.03, 0.03, 0.06), (0.03, 0.06, 0.06)], ids=["rational", "half", "half of one"]
)
def test_sums_that_meet_halves_in_numbers_that_are_rounded_are_refused(scales):
    m, r, y = (TensorType("u8", float(np.float32(s)), 7) for s in scales)
    assert products(m, r, y, Activation()) is None


def test_halves_of_powers_of_two_go_to_even():
    m, r, y = TensorType("u8", 0.5, 3), TensorType("u8", 0.25, 8), TensorType("u8", 1.0, 100)
    assert products(m, r, y, Activation()) is not None
    assert products(m, r, TensorType("u8", 1.0, 101), Activation()) is None  # 101 is added behind the rounding
