"""Windows without what only ever meets padding compute the same."""

from itertools import product

import numpy as np
import pytest

from kerf.deploy.frontend.windows import Window, live
from kerf.kernels.problem import Problem
from kerf.kernels.reference import conv2d

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("size", "k", "stride", "dilation", "pad"),
    [
        (size, k, stride, dilation, pad)
        for size, k, stride, dilation, pad in product((1, 3, 5), (1, 2, 3, 5), (1, 2), (1, 3, 6), (0, 1, 4, 6))
        if size + 2 * pad > dilation * (k - 1)
    ],
)
def test_same_sums(size, k, stride, dilation, pad):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, size, 4)), rng.standard_normal((3, 2, k, 3))
    whole = Window((k, 3), (stride, 1), (dilation, 1), (pad, 1, pad, 1))
    part, (rows, columns) = live(whole, (size, 4))

    def y(window, weight):
        p = Problem(1, 2, size, 4, 3, window.kernel, window.stride, window.padding, window.dilation)
        return conv2d(p, x.astype(np.float32), weight.astype(np.float32), np.zeros(3, np.float32))

    np.testing.assert_allclose(y(part, w[:, :, rows, columns]), y(whole, w), rtol=1e-5, atol=1e-6)
    assert part.kernel == w[:, :, rows, columns].shape[2:]


def test_dilated_beyond_the_image_is_its_middle():
    part, _ = live(Window((3, 3), (1, 1), (36, 36), (36, 36, 36, 36)), (33, 33))
    assert part == Window((1, 1), (1, 1), (36, 36), (0, 0, 0, 0))
