"""Tables of bytes: looked up by every machine's instructions, computed as ONNX's nodes compute them."""

import re

import numpy as np
import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels import reference
from kerf.kernels.cpu.emit.lookup import lookup, lookup_of
from kerf.kernels.cpu.layout import to_planes
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.cpu.pointwise import pointwise
from kerf.kernels.lowering import compile_func
from kerf.kernels.pointwise import table
from kerf.kernels.pointwise.activation import Activation
from kerf.kernels.pointwise.program import CHANNEL, FLOAT, IMAGE, PLANE, STEPS, Pointwise, Step
from kerf.kernels.tensor_type import TensorType
from tests.helpers.running import run

pytestmark = pytest.mark.quick

TARGETS = {
    "here": Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 1}),
    "three threads": Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 3}),
    "AVX2": Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1}),
    "one byte at a time": Target({"kind": "llvm", "mcpu": "x86-64", "num-cores": 1}),
}
SHAPES = ((1, 1, 16, 16), (2, 3, 13, 17), (1, 5, 1, 1), (1, 64, 1, 1), (1, 2, 32, 32))
X, Y = TensorType("u8", 0.03, 130), TensorType("u8", 0.007, 9)
DEQUANTISED = (Step("sub", (0, 130.0)), Step("scale", (1, X.scale)))


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtypes", [("uint8", "uint8"), ("int8", "uint8"), ("uint8", "int8")], ids=str)
def test_every_byte_by_its_bits(shape, target, dtypes):
    rng, count = np.random.default_rng(0), int(np.prod(shape))
    x = np.resize(rng.permutation(table.SIZE), count).astype(np.uint8).reshape(shape)
    entries = rng.integers(0, 256, table.SIZE).astype(np.uint8)
    planes = to_planes(x.view(dtypes[0]))
    y = run(lookup(shape, target, dtypes), target, planes, entries.view(dtypes[1]), out=planes.shape, dtype=dtypes[1])
    np.testing.assert_array_equal(y.view(np.uint8), entries[planes.view(np.uint8)])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"mcpu": "znver4"}, ("vpermi2b|vpermt2b", "vpmovb2m|vptestnmb|vptestmb")),
        ({"mcpu": "cascadelake"}, ("vpshufb",)),
        ({"mcpu": "haswell"}, ("vpshufb", "vpblendvb")),
        ({"mcpu": "cortex-a72", "mtriple": "aarch64-linux-gnu"}, ("tbl\t", "tbx\t")),
    ],
    ids=lambda v: v.get("mcpu", "") if isinstance(v, dict) else "",
)
def test_instructions_of_each_machine(target, words):
    target = Target({"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", **target})
    assert lookup_of(machine_of(target)) is not None
    code = compile_func(lookup((1, 4, 32, 32), target, ("uint8", "uint8")), target).inspect_source("asm")
    assert all(re.search(word, code) for word in words)


def test_a_table_is_what_the_nodes_give():
    """Sigmoid rounded to bytes, times its own input, rounded again; of int8, too; NaN is the least."""
    steps = (*DEQUANTISED, Step(Activation("sigmoid"), (2,)), Step(STEPS, (3, Y.scale)), Step("round", (4,)))
    f = Pointwise((IMAGE,), (*steps, Step("add", (5, 9.0))), stored=("uint8",), result="uint8")
    x = table.every("uint8")
    assert list(x[[0, 1, 255]]) == [0, 1, 255]
    real = reference.dequantise(x, X)
    np.testing.assert_array_equal(table.evaluate(f, [x]), reference.quantise(reference.sigmoid(real), Y))
    assert list(table.every("int8")[[0, 127, 128, 255]]) == [0, 127, -128, -1]
    nothing = Pointwise((IMAGE,), (Step("div", (0, 0.0)),), stored=("uint8",), result="int8")
    assert list(table.evaluate(nothing, [np.array([0, 3], np.uint8)])) == [-128, 127]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("stored", ["uint8", "int8"])
@pytest.mark.parametrize("size", [5, 24, 31])  # planes of fewer pixels than are worth a table, and of more
def test_bytes_by_numbers_of_planes_and_channels(size, stored, target):
    rng, shape = np.random.default_rng(0), (2, 3, size, size)
    x = rng.integers(0, 256, shape).astype(np.uint8).view(stored)
    plane = rng.integers(0, 256, (2, 3, 1, 1)).astype(np.uint8)
    channel = rng.random((1, 3, 1, 1)).astype(np.float32)
    steps = (Step("scale", (0, X.scale)), Step("scale", (1, Y.scale)), Step("mul", (3, 4)), Step("mul", (5, 2)))
    rounded = (Step(STEPS, (6, 0.011)), Step("round", (7,)), Step("add", (8, 100.0)))
    f = Pointwise((IMAGE, PLANE, CHANNEL), (*steps, *rounded), stored=(stored, "uint8", FLOAT), result="uint8")
    given = map(to_planes, (x, plane, channel))
    y = run(pointwise(f, shape, target), target, *given, out=to_planes(x).shape, dtype="uint8")
    real = x.astype(np.float32) * np.float32(X.scale) * (plane.astype(np.float32) * np.float32(Y.scale)) * channel
    expected = np.clip(np.rint(real / np.float32(0.011)) + 100, 0, 255)
    assert np.ptp(expected) > 100
    off = np.abs(y[:, :, : size * size].reshape(shape).astype(int) - expected)
    assert off.max() <= 1
    assert np.mean(off > 0) < 0.002  # products in another order


def test_steps_are_quotients_as_far_as_bytes_reach():
    """Of numbers around halves of a step, where another rounding would be another byte, and beyond all bounds."""
    target = TARGETS["here"]
    beyond = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-42, 0.0], np.float32)
    for size in (1e-6, 0.0030303, 0.07, 1.7, 93.1):
        halves = ((np.arange(-300, 300) + 0.5) * size).astype(np.float32)
        near = [halves]
        for towards in (np.inf, -np.inf):
            x = halves
            for _ in range(4):
                x = np.nextafter(x, np.float32(towards))
                near.append(x)
        x = np.concatenate([*near, beyond, np.zeros(-sum(map(len, (*near, beyond))) % 64, np.float32)])
        f = Pointwise((IMAGE,), (Step(STEPS, (0, size)), Step("round", (1,))), result="int8")
        y = run(pointwise(f, (1, 1, 1, len(x)), target), target, x.reshape(1, 1, -1), out=(1, 1, len(x)), dtype="int8")
        with np.errstate(over="ignore"):
            whole = np.nan_to_num(np.rint(x / np.float32(size)), nan=-128)
        np.testing.assert_array_equal(y.reshape(-1), np.clip(whole, -128, 127))
