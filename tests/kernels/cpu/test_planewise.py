"""Operators without weights, against numpy, on planes smaller and larger than a vector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels.cpu import planewise
from kerf.kernels.cpu.layout import from_planes, out_planes, to_planes
from kerf.kernels.problem import Problem
from kerf.kernels.reference import dequantise
from kerf.kernels.tensor_type import TensorType
from tests.helpers.running import run

pytestmark = pytest.mark.quick

TARGETS = {
    "host": Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()}),
    "plain x86-64": Target({"kind": "llvm", "mcpu": "x86-64"}),
}
SIZES = (1, 2, 3, 15, 16, 17, 49, 64, 65, 131, 196, 784)
FEW = (3, 16, 49, 131)  # less than a vector, a line, and not whole ones


def padded(x):
    """(planes, pixels) as one image in planes."""
    return to_planes(x[None, :, None])


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("pixels", SIZES)
def test_mean(pixels, target):
    x = np.random.default_rng(pixels).standard_normal((5, pixels)).astype(np.float32)
    y = run(planewise.mean((1, 5, pixels, 1), target), target, padded(x), out=(1, 5, 1))[0, :, 0]
    np.testing.assert_allclose(y, x.astype(np.float64).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pixels", FEW)
def test_mean_of_integers(pixels):
    x, kind = np.random.default_rng(pixels).integers(0, 256, (5, pixels)).astype(np.uint8), TensorType("u8", 0.07, 90)
    func = planewise.mean((1, 5, pixels, 1), TARGETS["host"], kind)
    y = run(func, TARGETS["host"], padded(x), out=(1, 5, 1))[0, :, 0]
    np.testing.assert_allclose(y, dequantise(x, kind).astype(np.float64).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("pixels", SIZES)
def test_scale(pixels, target):
    rng = np.random.default_rng(pixels)
    x, factor = rng.standard_normal((7, pixels)).astype(np.float32), rng.standard_normal(7).astype(np.float32)
    func = planewise.scale((1, 7, 1, pixels), target)
    y = run(func, target, padded(x), factor.reshape(1, 7, 1), out=padded(x).shape)
    np.testing.assert_array_equal(y, padded(x * factor[:, None]))


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("pixels", SIZES)
@pytest.mark.parametrize("channels", [1, 2, 16])
def test_softmax(channels, pixels, target):
    """Of numbers whose exponentials are infinite, too; a channel far below the others is 0."""
    rng = np.random.default_rng(pixels)
    x = (rng.standard_normal((2, channels, 1, pixels)) * 4 + 100).astype(np.float32)
    x[1, -1] -= 1e4
    y = run(planewise.softmax(x.shape, target), target, to_planes(x), out=to_planes(x).shape)
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(from_planes(y, x.shape), powers / powers.sum(1, keepdims=True), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("pixels", "target", "dtype"),
    [*((n, t, "float32") for n in SIZES for t in TARGETS.values()), *((n, TARGETS["host"], "uint8") for n in FEW)],
)
def test_planes_are_padded_and_unpadded(pixels, target, dtype):
    x = np.random.default_rng(0).integers(0, 256, (2, 3, pixels, 1)).astype(dtype)
    y = run(planewise.to_planes(x.shape, target, dtype), target, x, out=to_planes(x).shape, dtype=dtype)
    np.testing.assert_array_equal(y, to_planes(x))
    back = planewise.from_planes(x.shape, target, dtype)
    np.testing.assert_array_equal(run(back, target, y, out=x.shape, dtype=dtype), x)


POOLS = {
    "resnet": Problem(2, 5, 20, 23, 5, (3, 3), (2, 2), (1, 1, 1, 1), groups=5),
    "plain": Problem(1, 3, 12, 40, 3, (2, 2), (2, 2), groups=3),
    "neither padded nor strided": Problem(2, 3, 9, 33, 3, (3, 2), groups=3),
    "dilated": Problem(1, 2, 11, 13, 2, (2, 3), (1, 1), (1, 1, 1, 1), (2, 2), groups=2),
    "one pixel": Problem(1, 4, 2, 2, 4, (2, 2), groups=4),
    "long rows": Problem(1, 2, 2, 2101, 2, (1, 3), (1, 1), (0, 1, 0, 1), groups=2),
    "even, stride 3": Problem(1, 3, 17, 50, 3, (4, 4), (3, 3), (2, 2, 2, 2), groups=3),
}


@pytest.mark.parametrize("p", POOLS.values(), ids=POOLS)
def test_max_pool_of_negative_numbers(p):
    x = -np.random.default_rng(0).random(p.in_shape, np.float32) - 1  # padding with zeros would win
    planes = run(planewise.max_pool(p, TARGETS["host"]), TARGETS["host"], to_planes(x), out=out_planes(p))
    assert np.isfinite(planes).all()
    y = from_planes(planes, p.out_shape)
    truth = torch.nn.functional.max_pool2d(torch.from_numpy(x), p.kernel, p.stride, p.padding[:2], p.dilation)
    np.testing.assert_array_equal(y, truth.numpy())


@pytest.mark.parametrize(
    ("p", "dtype"),
    [(POOLS["resnet"], "uint8"), (POOLS["resnet"], "int8"), (POOLS["plain"], "uint8"), (POOLS["dilated"], "uint8")],
)
def test_max_pool_of_integers(p, dtype):
    unit = TensorType("u8" if dtype == "uint8" else "i8", 1.0, 0)
    p = replace(p, x=unit, w=TensorType("i8", axis=0), y=unit)
    low = np.iinfo(dtype).min
    x = np.random.default_rng(0).integers(low, low + 100, p.in_shape).astype(dtype)  # padding with zero would win
    func = planewise.max_pool(p, TARGETS["host"])
    y = from_planes(run(func, TARGETS["host"], to_planes(x), out=out_planes(p), dtype=dtype), p.out_shape)
    floats = torch.from_numpy(x.astype(np.float32))
    truth = torch.nn.functional.max_pool2d(floats, p.kernel, p.stride, p.padding[:2], p.dilation)
    np.testing.assert_array_equal(y, truth.numpy())


@pytest.mark.parametrize("p", [POOLS["resnet"], POOLS["neither padded nor strided"]], ids=["padded", "not padded"])
def test_average_pool_of_integers(p):
    kind = TensorType("u8", 0.07, 90)
    p = replace(p, x=kind.unit, w=TensorType("i8", axis=0))
    x = np.random.default_rng(0).integers(0, 256, p.in_shape).astype(np.uint8)
    factors = to_planes(np.full((1, 1, p.out_height, p.out_width), 1 / p.taps, np.float32))
    func = planewise.average_pool(p, TARGETS["host"], kind)
    y = from_planes(run(func, TARGETS["host"], to_planes(x), factors, out=out_planes(p)), p.out_shape)
    weight = torch.full((p.in_channels, 1, *p.kernel), 1 / p.taps)
    floats = torch.from_numpy(dequantise(x, kind))
    truth = torch.nn.functional.conv2d(floats, weight, None, p.stride, p.padding[:2], 1, p.in_channels)
    np.testing.assert_allclose(y, truth.numpy(), rtol=1e-5, atol=1e-5)
