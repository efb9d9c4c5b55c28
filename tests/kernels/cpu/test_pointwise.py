"""Functions of pixels against numpy: every kind of operand, planes smaller and larger than a vector, images joined."""

import numpy as np
import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels import reference
from kerf.kernels.cpu.layout import from_planes, to_planes
from kerf.kernels.cpu.pointwise import pointwise
from kerf.kernels.lowering import compile_func
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.program import CHANNEL, FLOAT, IMAGE, PLANE, Pointwise, Step
from kerf.kernels.tensor_type import TensorType
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


X, Y = TensorType("u8", 0.03, 130), TensorType("u8", 0.07, 9)
DEQUANTISED = (Step("sub", (0, 130.0)), Step("mul", (1, np.float32(0.03).item())))


def quantised(value):
    """Steps behind ``value``, the last one."""
    number = np.float32(0.07).item()
    return Step("div", (value, number)), Step("round", (value + 1,)), Step("add", (value + 2, 9.0))


@pytest.mark.parametrize(
    ("shape", "target"), [*((s, TARGETS["one thread"]) for s in SHAPES), (SHAPES[3], TARGETS["three"])]
)
def test_bytes_become_floats_and_bytes_again(shape, target):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    steps = (*DEQUANTISED, Step(Activation("hardswish"), (2,)), *quantised(3))
    f = Pointwise((IMAGE,), steps, stored=("uint8",), result="uint8")
    y = run(pointwise(f, shape, target), target, to_planes(x), out=to_planes(x).shape, dtype="uint8")
    real = reference.dequantise(x, X)
    expected = reference.quantise(real * np.clip(real / 6 + 0.5, 0, 1), Y)
    got = from_planes(y, shape).astype(int)
    assert np.abs(got - expected).max() <= 1
    assert np.count_nonzero(got != expected) <= max(2, 0.01 * got.size)  # hardswish is rounded otherwise


def test_quotients_round_as_numpy_and_saturate():
    """A reciprocal would round some of them otherwise; NaN is the least."""
    shape = (1, 1, 64, 64)
    x = (np.random.default_rng(0).integers(-40, 300, shape) * np.float32(0.07)).astype(np.float32) / 2
    x[0, 0, 0, :3] = np.inf, -np.inf, np.nan
    target = TARGETS["one thread"]
    for dtype, (low, high) in {"uint8": (0, 255), "int8": (-128, 127)}.items():
        f = Pointwise((IMAGE,), quantised(0), result=dtype)
        y = from_planes(run(pointwise(f, shape, target), target, to_planes(x), out=(1, 1, 4096), dtype=dtype), shape)
        whole = np.nan_to_num(np.rint(x / np.float32(0.07)) + 9, nan=low)
        np.testing.assert_array_equal(y, np.clip(whole, low, high).astype(dtype))


def test_sums_of_dequantised_bytes_are_those_of_numpy_to_the_last_bit():
    """Each product is rounded, whichever operand comes first, also where the CPU multiplies and adds at once."""
    a, b = (np.ascontiguousarray(np.broadcast_to(v, (1, 1, 256, 256)).astype(np.uint8)) for v in np.ogrid[:256, :256])
    steps = (Step("scale", (0, X.scale)), Step("scale", (1, Y.scale)), Step("add", (2, 3)))
    f, target = Pointwise((IMAGE, IMAGE), steps, stored=("uint8", "uint8")), TARGETS["one thread"]
    y = from_planes(run(pointwise(f, a.shape, target), target, to_planes(a), to_planes(b), out=(1, 1, 65536)), a.shape)
    scales = np.float32(X.scale), np.float32(Y.scale)
    np.testing.assert_array_equal(y, a.astype(np.float32) * scales[0] + b.astype(np.float32) * scales[1])


def test_bytes_and_floats_mixed_and_joined():
    rng, target = np.random.default_rng(0), TARGETS["one thread"]
    parts = [rng.integers(0, 256, (1, k, 5, 7)).astype(np.uint8) for k in (2, 3)]
    scale, zero = (rng.random((1, 5, 1, 1)).astype(np.float32) for _ in range(2))
    f = Pointwise(
        (IMAGE, CHANNEL, CHANNEL, IMAGE),
        (Step("sub", (0, 1)), Step("mul", (4, 2)), Step("add", (5, 3))),
        (2, 3),
        ("uint8", FLOAT, FLOAT, FLOAT),
    )
    other = rng.standard_normal((1, 5, 5, 7)).astype(np.float32)
    expected = (np.concatenate(parts, 1) - zero) * scale + other
    given = map(to_planes, (*parts, zero, scale, other))
    y = run(pointwise(f, expected.shape, target), target, *given, out=to_planes(expected).shape)
    np.testing.assert_allclose(from_planes(y, expected.shape), expected, rtol=1e-6)


def test_bytes_are_converted_in_registers():
    """AVX2 has instructions that widen eight bytes, and that pack: none of them a lane at a time."""
    target = Target({"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-unknown-linux-gnu"})
    f = Pointwise((IMAGE,), (*DEQUANTISED, *quantised(2)), stored=("uint8",), result="uint8")
    code = compile_func(pointwise(f, (1, 8, 16, 16), target), target).inspect_source("asm")
    assert "vpmovzxbd" in code
    assert "vcvtdq2ps" in code
    assert "vdivps" in code
    assert "vpextrb" not in code
    assert "vpinsrb" not in code
