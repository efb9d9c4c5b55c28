"""Moved pixels against numpy, on planes smaller and larger than a vector."""

import numpy as np
import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels.cpu import moves
from kerf.kernels.cpu.layout import to_planes
from kerf.kernels.form import Order
from tests.helpers.running import run

pytestmark = pytest.mark.quick

TARGET = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 2})
SHAPES = ((1, 12, 1, 1), (2, 12, 3, 5), (1, 12, 7, 7), (1, 12, 5, 19), (1, 12, 2, 2101))


def image(shape, dtype="float32"):
    return (np.random.default_rng(0).standard_normal(shape) * 100).astype(np.int8).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((s, "float32") for s in SHAPES), *((s, "uint8") for s in SHAPES[1::2])], ids=str
)
@pytest.mark.parametrize(
    ("order", "channels", "truth"),
    [
        (Order(3, 4, 1, 0), 4, lambda x: x[:, 3:7]),
        (Order(1, 4, 3, 0), 4, lambda x: x[:, 1::3]),
        (Order(0, 3, 4, 1), 12, lambda x: x.reshape(-1, 3, 4, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)),
    ],
    ids=["slice", "steps", "shuffle"],
)
def test_planes(order, channels, truth, shape, dtype):
    expected, x = to_planes(truth(image(shape, dtype))), to_planes(image(shape, dtype))
    y = run(moves.planes(order, shape, channels, TARGET, dtype), TARGET, x, out=expected.shape, dtype=dtype)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((s, "float32") for s in SHAPES), *((s, "uint8") for s in SHAPES[1::2])], ids=str
)
@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (4, 1)], ids=str)
def test_enlarged(factors, shape, dtype):
    x = image(shape, dtype)
    expected = to_planes(x.repeat(factors[0], 2).repeat(factors[1], 3))
    y = run(moves.enlarge(factors, shape, TARGET, dtype), TARGET, to_planes(x), out=expected.shape, dtype=dtype)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((s, "float32") for s in SHAPES), *((s, "uint8") for s in SHAPES[1::2])], ids=str
)
@pytest.mark.parametrize(("factor", "mode"), [(2, "DCR"), (2, "CRD"), (3, "DCR")], ids=str)
def test_spread(factor, mode, shape, dtype):
    n, c, h, w = shape[0], 2 * factor**2, *shape[2:]
    x = image((n, c, h, w), dtype)
    steps = (1, 2) if mode == "DCR" else (factor**2, 1)
    phases = x.reshape(n, factor, factor, 2, h, w) if mode == "DCR" else x.reshape(n, 2, factor, factor, h, w)
    axes = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    expected = to_planes(phases.transpose(axes).reshape(n, 2, h * factor, w * factor))
    made = moves.spread(factor, steps, (n, c, h, w), TARGET, dtype)
    np.testing.assert_array_equal(run(made, TARGET, to_planes(x), out=expected.shape, dtype=dtype), expected)


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((2, 3, 5, 7), (10, 14)),  # by two: a vector reads many columns
        ((1, 2, 3, 4), (47, 63)),  # by odd numbers, the last vector overlaps
        ((1, 5, 1, 1), (6, 5)),  # one pixel
        ((1, 2, 1, 9), (4, 20)),
        ((1, 2, 9, 1), (20, 3)),
        ((1, 3, 4, 33), (4, 40)),  # rows stay
        ((1, 2, 1, 700), (2, 2101)),  # long rows
    ],
    ids=str,
)
@pytest.mark.parametrize("align", [False, True], ids=["half_pixel", "align_corners"])
def test_between_pixels(shape, out, align):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rows, columns = (
        np.arange(o) * (s - 1) / (o - 1) if align else (np.arange(o) + 0.5) * s / o - 0.5
        for o, s in zip(out, shape[2:])
    )
    along = np.apply_along_axis(lambda line: np.interp(columns, np.arange(shape[3]), line), 3, x)
    expected = to_planes(
        np.apply_along_axis(lambda line: np.interp(rows, np.arange(shape[2]), line), 2, along).astype(np.float32)
    )
    t = moves.tables(rows, columns, shape, TARGET)
    y = run(moves.interpolate(t, out, shape, TARGET), TARGET, to_planes(x), *t, out=expected.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
