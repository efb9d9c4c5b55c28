"""Products for many rows of x, in every width of vectors: those that this machine lacks are made of those it has."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.cpu import dense_nc_bsr_tokens, dense_nc_dense_tokens
from kerf.kernels.cpu.emit.transpose import transposed
from kerf.kernels.kernel import dense_twin, pick
from kerf.kernels.lowering import compile_func
from kerf.kernels.problem import Problem
from tests.kernels.cpu.test_kernels import ARM, AVX2, HOST, SHARED, check, layer

AVX512 = Target({"kind": "llvm", "mcpu": "x86-64-v4"})

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_a_square_of_vectors_is_transposed(lanes):
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x, y = (T.arg(name, T.buffer((lanes, lanes), "float32")) for name in "xy")
        for i, column in enumerate(transposed([T.Bind(x[i, T.ramp(0, 1, lanes)]) for i in range(lanes)], lanes)):
            T.buffer_store(y, column, [i, T.ramp(0, 1, lanes)])
    numbers = np.arange(lanes * lanes, dtype=np.float32).reshape(lanes, lanes)
    out = tvm.runtime.tensor(np.zeros_like(numbers))
    compile_func(builder.get(), HOST)["main"](tvm.runtime.tensor(numbers), out)
    np.testing.assert_array_equal(out.numpy(), numbers.T)


@pytest.mark.parametrize(("lanes", "vectors"), [(16, 2), (4, 5)])
def test_every_width_of_vectors_equals_reference(lanes, vectors):
    p, w, bias, x, residual = layer(Problem(41, 21, 1, 1, 27, n=4, residual=True, activation="relu"), 0.5)
    c = {"lanes": lanes, "rows": 4, "vectors": vectors}
    check(dense_nc_bsr_tokens, p, c, w, bias, x, residual)
    check(dense_nc_dense_tokens, dense_twin(p), c, w, bias, x, residual)


@pytest.mark.parametrize("tokens", [8, 24, 200])
def test_threads_share_tiles_of_tokens_or_where_they_are_few_block_rows(tokens):
    p, w, bias, x, residual = layer(Problem(tokens, 11, 1, 1, 43, n=4, residual=True), 0.5)
    for problem, kernel in ((p, dense_nc_bsr_tokens), (dense_twin(p), dense_nc_dense_tokens)):
        check(kernel, problem, kernel.configs(problem, SHARED)[0], w, bias, x, residual, SHARED)


def test_block_rows_without_a_block_are_the_bias():
    p, w, bias, x, residual = layer(Problem(30, 9, 1, 1, 24, n=4), 1)
    w[4:12] = 0
    p = replace(p, nnzb=BSR.from_conv(w, 4).nnzb)
    check(dense_nc_bsr_tokens, p, dense_nc_bsr_tokens.configs(p, HOST)[0], w, bias, x, residual)


@pytest.mark.parametrize("target", [AVX2, AVX512, ARM], ids=["avx2", "avx512", "aarch64"])
def test_it_compiles_for_other_targets_with_sums_in_registers(target):
    p = layer(Problem(49, 64, 1, 1, 64, n=4), 0.5)[0]
    asm = compile_func(
        dense_nc_bsr_tokens.prim_func(p, dense_nc_bsr_tokens.configs(p, target)[0], target), target
    ).inspect_source("asm")
    multiply_adds = [i for i, line in enumerate(asm.splitlines()) if "vfmadd" in line or "fmla" in line]
    assert len(multiply_adds) >= 12
    between = asm.splitlines()[multiply_adds[0] : multiply_adds[11]]
    assert not [line for line in between if "\tst" in line or ("vmov" in line and line.rstrip().endswith(")"))]


def test_few_rows_are_left_to_the_kernel_along_outputs():
    sparse = layer(Problem(1, 40, 1, 1, 32, n=4), 0.5)[0]
    found = {
        (batch, problem.n): pick(CPU.kernels, problem, HOST).name
        for batch in (1, 7, 8)
        for problem in (replace(sparse, batch=batch), dense_twin(replace(sparse, batch=batch)))
    }
    assert found == {
        (1, 4): "dense_nc_bsr_rows",
        (1, 0): "dense_nc_dense_columns",
        (7, 4): "dense_nc_bsr_rows",
        (7, 0): "dense_nc_dense_columns",
        (8, 4): "dense_nc_bsr_tokens",
        (8, 0): "dense_nc_dense_tokens",
    }
