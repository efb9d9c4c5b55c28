"""Layers of bytes that multiply in f32: right, and first where the estimate says that they are faster."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features
from tvm.tirx.script.builder import ir as T

from kerf.deploy.compiler.choice import Choice
from kerf.deploy.report import claims
from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.cpu.int8 import conv2d_nchw_bytes_direct, dot
from kerf.kernels.cpu.int8.dot import PACKED
from kerf.kernels.kernel import candidates
from kerf.kernels.lowering import compile_func
from tests.kernels.cpu.test_int8 import HOST, PROBLEMS, SAME, compare, layer, problem, run

AVX2 = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})
has_avx2 = pytest.mark.skipif("avx2" not in llvm_get_cpu_features(HOST), reason="runs code for AVX2")


@has_avx2
@pytest.mark.parametrize(
    "name",
    [
        "1x1 sparse",
        "grouped sparse",
        "grouped",
        "stem",
        "stride 2 projection",
        "residual of floats",
        "primes",
        "planes of a pixel",
        "3x3 without padding",
    ],
)
def test_products_of_floats(name):
    """What a CPU without a dot product of bytes may take, whatever this one has."""
    p, given = PROBLEMS[name], layer(PROBLEMS[name], zero=255)
    p = replace(p, nnzb=BSR.from_conv(given["w"], p.n).nnzb) if p.n else p
    for config in conv2d_nchw_bytes_direct.configs(p, AVX2)[:2]:
        compare(run(conv2d_nchw_bytes_direct, p, config, given, AVX2), p, given)


def test_the_least_estimate_comes_first():
    few, many = (problem(1, 96, 14, 14, 576, n=4, nnzb=144 * k, activation="relu6") for k in (4, 90))
    stem = problem(1, 3, 224, 224, 32, (3, 3), (2, 2), SAME, activation="relu6")
    wide = problem(1, 256, 14, 14, 256, (3, 3), padding=SAME, activation="relu")
    floats, quads = "conv2d_nchw_bytes_direct", ("conv2d_nchw_bsr_quads", "conv2d_nchw_dense_quads")
    for p, first in ((few, floats), (many, quads[0]), (stem, floats), (wide, quads[1])):
        found = [c for c in candidates(CPU.kernels, p, AVX2) if c.problem == p]
        estimates = [c.kernel.cycles(p, AVX2) for c in found]
        assert estimates == sorted(estimates)
        assert (found[0].kernel.name, len(found)) == (first, 2)
    vnni = Target({"kind": "llvm", "mcpu": "znver4"})
    assert [c.kernel.name for c in candidates(CPU.kernels, few, vnni)] == list(quads)


@has_avx2
@pytest.mark.parametrize("lanes", PACKED)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_packed_bytes_are_in_their_order(lanes, count):
    size = lanes * count
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, y = T.arg("x", T.buffer((size,), "float32")), T.arg("y", T.buffer((size + 1,), "uint8"))
        vectors = [T.Bind(x[T.ramp(k * lanes, 1, lanes)]) for k in range(count)]
        bounds = T.float32(3), T.float32(250)
        for place, part in dot.packed(dot.DOTS["maddubs"], vectors, lanes, *bounds):
            T.buffer_store(y, part, [T.ramp(place, 1, part.ty.dtype.lanes)])
    x, y = np.linspace(-9.4, 300, size, dtype=np.float32), tvm.runtime.tensor(np.full(size + 1, 77, np.uint8))
    compile_func(builder.get(), AVX2)["main"](tvm.runtime.tensor(x), y)
    np.testing.assert_array_equal(y.numpy(), [*np.clip(np.rint(x), 3, 250), 77])


def test_reports_name_them():
    choice = Choice(PROBLEMS["1x1 sparse"], conv2d_nchw_bytes_direct.name, {})
    assert (choice.numbers, claims.FLOATS_OF_BYTES) == ("f32", choice.kernel)
