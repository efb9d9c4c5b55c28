"""With AVX2's 16 registers the sums of a tile stay in them: what LLVM moves to the stack and back costs a tenth."""

import re

import pytest
from tvm.target import Target

from kerf.kernels.cpu import conv2d_nchw_bsr_direct as kernel
from kerf.kernels.lowering import compile_func
from kerf.kernels.problem import Problem

AVX2 = Target({"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"})
SAVED = re.compile(r"vmovu?a?ps\s+%ymm\d+, -?\d*\(%rsp\)")  # a vector to the stack

PROBLEMS = {
    "1x1, 4 pixels left": Problem(1, 96, 14, 14, 32, n=4, nnzb=384),
    "1x1, 1 pixel left": Problem(1, 96, 7, 7, 32, n=4, nnzb=384),
    "3x3": Problem(1, 64, 56, 56, 64, (3, 3), padding=(1, 1, 1, 1), n=4, nnzb=512),
    "3x3/2": Problem(1, 32, 56, 56, 64, (3, 3), (2, 2), (1, 1, 1, 1), n=4, nnzb=256),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_first_configuration_keeps_its_sums_in_registers(name):
    p = PROBLEMS[name]
    code = compile_func(kernel.prim_func(p, kernel.configs(p, AVX2)[0], AVX2), AVX2).inspect_source("asm")
    assert code.count("vfmadd") >= 12 * p.taps
    assert len(SAVED.findall(code)) <= 2, "one or two lie outside the loops"
