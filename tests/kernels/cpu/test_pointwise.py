"""Functions of pixels against numpy: every kind of operand, planes smaller and larger than a vector, images joined."""

import numpy as np
import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels.cpu.layout import to_planes
from kerf.kernels.cpu.pointwise import pointwise
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.program import CHANNEL, IMAGE, PLANE, Pointwise, Step
from tests.helpers.running import run

pytestmark = pytest.mark.quick

HOST = {"kind": "llvm", "mcpu": llvm_get_system_cpu()}
TARGETS = {"one thread": Target({**HOST, "num-cores": 1}), "three": Target({**HOST, "num-cores": 3})}
SHAPES = ((1, 5, 1, 1), (2, 3, 3, 5), (1, 7, 7, 7), (2, 5, 8, 8), (1, 3, 13, 17))
AFFINE = (Step("mul", (0, 1)), Step("add", (3, 2)), Step(Activation("relu"), (4,)))


def operand(kind, shape, rng):
    n, c, _, _ = shape
    size = {IMAGE: shape, PLANE: (n, c, 1, 1), CHANNEL: (1, c, 1, 1)}[kind]
    return (rng.standard_normal(size) + 3).astype(np.float32)


FUNCTIONS = {
    "sum": (Pointwise((IMAGE, IMAGE), (Step("add", (0, 1)),)), lambda x, a: x + a),
    "scale": (Pointwise((IMAGE, PLANE), (Step("mul", (0, 1)),)), lambda x, a: x * a),
    "affine": (Pointwise((IMAGE, CHANNEL, CHANNEL), AFFINE), lambda x, a, b: np.maximum(x * a + b, 0)),
    "by a number": (Pointwise((IMAGE,), (Step("sub", (1.5, 0)),)), lambda x: 1.5 - x),
    "quotient": (Pointwise((IMAGE, IMAGE), (Step("div", (0, 1)),)), lambda x, a: x / a),
    "largest, least": (
        Pointwise((IMAGE, IMAGE), (Step("max", (0, 1)), Step("min", (2, 3.0)))),
        lambda x, a: np.minimum(np.maximum(x, a), 3),
    ),
    "tanh": (Pointwise((IMAGE,), (Step(Activation("tanh"), (0,)),)), np.tanh),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("key", FUNCTIONS)
def test_function(key, shape, target):
    f, truth = FUNCTIONS[key]
    rng = np.random.default_rng(0)
    operands = [operand(kind, shape, rng) for kind in f.operands]
    expected = truth(*operands)
    y = run(pointwise(f, shape, target), target, *map(to_planes, operands), out=to_planes(expected).shape)
    assert np.isfinite(y).all(), "planes are filled to the end"
    pixels = shape[2] * shape[3]
    np.testing.assert_allclose(y[:, :, :pixels].reshape(shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_joined_on_the_way(shape, target):
    rng, (n, c, h, w) = np.random.default_rng(0), shape
    parts = [rng.standard_normal((n, k, h, w)).astype(np.float32) for k in (1, c, 4)]
    whole = np.concatenate(parts, axis=1)
    out = to_planes(whole).shape
    plain = Pointwise((IMAGE,), parts=(1, c, 4))
    y = run(pointwise(plain, whole.shape, target), target, *map(to_planes, parts), out=out)
    np.testing.assert_array_equal(y, to_planes(whole))
    a, b = (operand(CHANNEL, whole.shape, rng) for _ in range(2))
    f = Pointwise((IMAGE, CHANNEL, CHANNEL), AFFINE, (1, c, 4))
    y = run(pointwise(f, whole.shape, target), target, *map(to_planes, (*parts, a, b)), out=out)
    np.testing.assert_allclose(
        y[:, :, : h * w].reshape(whole.shape), np.maximum(whole * a + b, 0), rtol=1e-5, atol=1e-6
    )
