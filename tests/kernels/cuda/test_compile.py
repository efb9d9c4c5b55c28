"""GPU kernels as the CUDA compiler makes them, without a GPU."""

from dataclasses import replace

import pytest
from tvm.target import Target

from kerf.kernels.backends import backend_of
from kerf.kernels.cuda import KERNELS, compiler
from kerf.kernels.cuda.host import resources
from kerf.kernels.kernel import candidates, pick
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem

compiles = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))
looks_inside = pytest.mark.skipif(resources.cuobjdump() is None, reason="no cuobjdump")


def gpu(arch: str) -> Target:
    return Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


# Two seconds each: one that copies and gathers, one of the other precision, one without tensor cores.
QUICK = (("conv2d_chwn_bsr_halo", "f16"), ("conv2d_chwn_bsr_mma", "tf32"), ("conv2d_chwn_bsr_simt", "f32"))


def check(arch: str, quick: bool) -> None:
    target = gpu(arch)
    seen = set()
    for kernel, p, c in resources.cases(target):
        if quick and ((kernel.name, p.precision) in seen or (kernel.name, p.precision) not in QUICK):
            continue
        seen.add((kernel.name, p.precision))
        used = resources.usage(kernel, p, c, target)
        assert used.spilled == used.instructions["LDL"] == used.instructions["STL"] == 0, (kernel.name, c)
        assert used.registers * used.threads <= 65536
        tensor_cores = kernel.name in resources.TENSOR_CORES
        assert (used.instructions["HMMA"] > 0) == tensor_cores, (kernel.name, used)
        assert (used.instructions["LDGSTS"] > 0) == tensor_cores, (kernel.name, used)
        assert (used.instructions["FFMA"] > 0) or tensor_cores
    assert seen == set(QUICK) if quick else {name for name, _ in seen} == {k.name for k in KERNELS}


@compiles
@looks_inside
def test_no_kernel_spills_and_tensor_cores_are_used():
    check("sm_90", quick=True)


@compiles
@looks_inside
@pytest.mark.slow
@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
def test_no_kernel_spills_on_any_architecture(arch):
    check(arch, quick=False)


def test_kernels_are_chosen_by_target_and_precision():
    p = Problem(16, 64, 14, 14, 64, n=32, nnzb=20, **types_of("f16"))
    assert backend_of(gpu("sm_80")).kernels is KERNELS
    takers = [c.kernel.name for c in candidates(KERNELS, p, gpu("sm_80")) if c.problem.n]
    assert takers == ["conv2d_chwn_bsr_mma", "conv2d_chwn_bsr_panels"], "1x1: one tap"
    assert pick(KERNELS, replace(p, **types_of("tf32")), gpu("sm_80")).name == "conv2d_chwn_bsr_mma"
    assert pick(KERNELS, replace(p, n=8, **types_of("f32")), gpu("sm_80")).name == "conv2d_chwn_bsr_simt"
    odd = replace(p, batch=3, kernel=(3, 3), padding=(1, 1, 1, 1))
    takers = [c.kernel.name for c in candidates(KERNELS, odd, gpu("sm_80")) if c.problem.n]
    assert takers == ["conv2d_chwn_bsr_mma"], "three images fill no vector"
    with pytest.raises(ValueError, match="registers hold 8"):
        pick(KERNELS, replace(p, n=32, **types_of("f32")), gpu("sm_80"))
    assert [c.problem.n for c in candidates(KERNELS, replace(p, n=32, **types_of("f32")), gpu("sm_80"))] == [0]


def test_precision_is_in_the_key_of_records_where_it_is_not_f32():
    p = Problem(1, 4, 4, 4, 4)
    assert "precision" not in p.to_json()
    assert Problem.from_json(p.to_json()) == p
    half = replace(p, **types_of("f16"))
    assert Problem.from_json(half.to_json()) == half
    with pytest.raises(ValueError, match="f32, tf32, f16"):
        replace(p, **types_of("bf16"))
