"""Every kernel of the table against numpy, on shapes chosen to hurt."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels import reference
from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.cpu import conv2d_nchw_depthwise, expand_depthwise
from kerf.kernels.cpu.emit.sharing import busiest
from kerf.kernels.cpu.layout import from_planes, out_planes, to_planes
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.kernel import candidates, dense_twin, pick
from kerf.kernels.lowering import compile_func
from kerf.kernels.pointwise.activation import ACTIVATIONS
from kerf.kernels.problem import Problem
from tests.helpers.sweeps import sweep

HOST = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 1})
SHARED = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 3})  # threads
AVX2 = Target({"kind": "llvm", "mcpu": "x86-64-v3"})
ARM = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]})
SAME = (1, 1, 1, 1)

DENSE = {
    "1x1": Problem(1, 13, 14, 14, 24),
    "primes": Problem(1, 7, 11, 13, 5, (3, 3), padding=SAME),
    "stride 2": Problem(1, 5, 17, 19, 11, (3, 3), (2, 2), SAME, activation="relu"),
    "stem": Problem(1, 3, 33, 33, 10, (7, 7), (2, 2), (3, 3, 3, 3), activation="relu6"),
    "dilated, batch 2": Problem(2, 4, 12, 15, 6, (3, 5), (2, 1), (0, 1, 2, 0), (2, 1), residual=True),
    "no padding": Problem(1, 3, 9, 10, 4, (3, 3)),
    "dilated to the edge": Problem(1, 3, 9, 17, 5, (3, 3), (2, 1), (7, 7, 7, 7), (7, 7)),
    "wide padding": Problem(1, 2, 5, 5, 3, (2, 2), (3, 3), (2, 3, 1, 4)),
    "uneven stride": Problem(1, 3, 9, 33, 5, (3, 3), (2, 3), (2, 0, 1, 4), (2, 1), activation="silu"),
    "one pixel": Problem(1, 6, 1, 1, 7),
    "three pixels": Problem(1, 6, 1, 3, 9, residual=True, activation="relu"),
    "grouped": Problem(1, 8, 9, 9, 12, (3, 3), padding=SAME, groups=4),
    "odd groups": Problem(1, 6, 7, 7, 9, (3, 3), padding=SAME, groups=3, activation="hardswish"),
    "depthwise": Problem(2, 19, 14, 14, 19, (3, 3), padding=SAME, groups=19, activation="relu6", residual=True),
    "depthwise stride 2": Problem(1, 17, 23, 29, 17, (5, 5), (2, 2), (2, 2, 2, 2), groups=17, activation="hardswish"),
    "depthwise valid": Problem(1, 3, 8, 20, 3, (3, 3), groups=3),
    "depthwise 7x7 plane": Problem(1, 33, 7, 7, 33, (3, 3), padding=SAME, groups=33),
    "classifier": Problem(3, 37, 1, 1, 101, activation="relu"),
    "tokens": Problem(49, 32, 1, 1, 24, activation="hardswish", residual=True),
    "odd tokens": Problem(29, 37, 1, 1, 51),
    "few channels": Problem(20, 3, 1, 1, 5, residual=True),
    "long rows": Problem(1, 3, 2, 2101, 5, (1, 3), padding=(0, 1, 0, 1), residual=True, activation="relu"),
    "long rows, stride 2": Problem(1, 3, 2, 4203, 5, (1, 3), (1, 2), (0, 1, 0, 1)),
    "long depthwise rows": Problem(1, 3, 3, 2101, 3, (3, 3), padding=SAME, groups=3, residual=True),
}
SPARSE = {
    "1x1": Problem(1, 24, 14, 14, 32, n=4, activation="relu6"),
    "1x1 7x7 plane": Problem(1, 24, 7, 7, 32, n=8, residual=True, activation="relu"),
    "remainder": Problem(1, 10, 9, 9, 22, n=4),
    "tail of 1": Problem(2, 9, 7, 7, 22, n=4, residual=True, activation="hardswish"),
    "tail of 2, N=1": Problem(1, 9, 5, 10, 6, n=1),
    "tail of 3, N=3": Problem(1, 9, 5, 7, 8, n=3),
    "tail of 4, several tiles": Problem(1, 9, 14, 14, 37, n=8, activation="relu"),
    "tail between rows": Problem(1, 5, 3, 5, 8, (3, 3), padding=SAME, n=4),
    "wide remainder": Problem(1, 10, 8, 8, 37, n=16, activation="hardsigmoid"),
    "N=1": Problem(1, 13, 10, 10, 7, (3, 3), padding=SAME, n=1),
    "N=2": Problem(1, 13, 10, 10, 7, n=2),
    "N=3": Problem(1, 3, 9, 33, 5, (3, 3), (2, 3), (2, 0, 1, 4), (2, 1), n=3, activation="silu", residual=True),
    "N=32": Problem(1, 16, 12, 12, 64, (3, 3), padding=SAME, n=32),
    "N > channels": Problem(1, 5, 12, 12, 6, n=8),
    "stride 2 projection": Problem(1, 16, 14, 14, 24, (1, 1), (2, 2), n=4),
    "3x3 batch 2": Problem(2, 12, 28, 28, 16, (3, 3), padding=SAME, n=4, activation="relu", residual=True),
    "5x5": Problem(1, 5, 11, 11, 8, (5, 5), padding=(2, 2, 2, 2), n=4),
    "dilated to the edge": Problem(1, 9, 11, 18, 8, (3, 3), padding=(9, 9, 9, 9), dilation=(9, 9), n=4, residual=True),
    "3x3 in panels": Problem(1, 100, 9, 26, 8, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), n=4),
    "grouped": Problem(1, 20, 9, 9, 32, (3, 3), padding=SAME, groups=4, n=4, residual=True, activation="relu"),
    "grouped, N=2, stride 2": Problem(2, 9, 15, 16, 12, (3, 3), (2, 2), SAME, groups=3, n=2),
    "grouped, N of a group, 1x1": Problem(1, 14, 7, 7, 16, groups=2, n=8),
    "grouped, in panels": Problem(1, 202, 9, 26, 8, (3, 3), padding=SAME, groups=2, n=4),
    "classifier": Problem(2, 40, 1, 1, 30, n=4, residual=True),
    "classifier N=3": Problem(1, 40, 1, 1, 31, n=3, activation="sigmoid"),
    "classifier N=16": Problem(1, 33, 1, 1, 70, n=16),
    "tokens": Problem(49, 32, 1, 1, 48, n=4, residual=True, activation="silu"),
    "odd tokens": Problem(197, 37, 1, 1, 51, n=4, activation="relu"),
    "tokens, N=3": Problem(33, 11, 1, 1, 53, n=3, residual=True),
    "tokens, N=1": Problem(100, 13, 1, 1, 9, n=1),
    "tokens, N=32": Problem(8, 40, 1, 1, 70, n=32),
    "tokens, few channels": Problem(9, 3, 1, 1, 6, n=2),
    "long rows": Problem(1, 6, 2, 2101, 8, (1, 3), padding=(0, 1, 0, 1), n=4, residual=True),
}


def layer(p: Problem, density: float, seed: int = 0):
    """(problem with nnzb, weight (O, I/g, kh, kw), bias, inputs) of a layer with this share of blocks."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(p.weight_shape).astype(np.float32)
    if p.n:
        rows = -(-p.out_channels // p.n)
        count = rows * p.weight_shape[1]
        kept = rng.permutation(count) < round(density * count)
        w *= np.repeat(kept.reshape(rows, -1), p.n, axis=0)[: p.out_channels, :, None, None]
        p = replace(p, nnzb=BSR.from_conv(w, p.n).nnzb)
    x = rng.standard_normal(p.in_shape).astype(np.float32)
    residual = [rng.standard_normal(p.out_shape).astype(np.float32)] if p.residual else []
    return p, w, rng.standard_normal(p.out_channels).astype(np.float32), x, residual


def check(kernel, p, c, w, bias, x, residual, target=HOST):
    weights = BSR.from_conv(w, p.n) if p.n else w
    out = tvm.runtime.tensor(np.full(out_planes(p), np.nan, np.float32))
    planes = [to_planes(a) for a in (x, *residual)]
    arrays = [planes[0], *kernel.pack(p, weights, c).values(), bias, *planes[1:]]
    compile_func(kernel.prim_func(p, c, target), target)["main"](*[tvm.runtime.tensor(a) for a in arrays], out)
    truth = reference.conv2d(p, x, w, bias, *residual)
    assert np.isfinite(out.numpy()).all(), "every kernel fills its planes to the end"
    y = from_planes(out.numpy(), p.out_shape)
    np.testing.assert_allclose(y, truth, atol=2e-5 * max(1, np.abs(truth).max()), err_msg=f"{kernel.name} {c}")


@pytest.mark.parametrize("key", DENSE)
def test_dense_problem_equals_reference_with_every_kernel(key):
    p, w, bias, x, residual = layer(DENSE[key], 1)
    takers = list(candidates(CPU.kernels, p, HOST))
    assert takers
    for taker in takers:
        configs = taker.kernel.configs(p, HOST)
        for c in {str(c): c for c in (*configs[:2], configs[-1])}.values():
            check(taker.kernel, p, c, w, bias, x, residual)


@pytest.mark.parametrize("density", sweep((0, 0.5, 1), quick=(0.5,)))  # none: test_empty_block_rows
@pytest.mark.parametrize("key", SPARSE)
def test_sparse_problem_equals_reference_with_every_kernel(key, density):
    p, w, bias, x, residual = layer(SPARSE[key], density)
    takers = [t for t in candidates(CPU.kernels, p, HOST) if t.problem.n]
    assert takers
    for taker in takers:
        configs = taker.kernel.configs(p, HOST)
        for c in {str(c): c for c in (configs[0], configs[-1])}.values():
            check(taker.kernel, p, c, w, bias, x, residual)


PAIRS = {
    "expand": (Problem(1, 5, 14, 14, 22, n=4, activation="relu6"), (3, 3), (1, 1)),
    "expand, stride 2, batch 2": (Problem(2, 7, 15, 17, 12, n=8, activation="hardswish"), (5, 5), (2, 2)),
    "wide blocks": (Problem(1, 9, 7, 7, 37, n=32), (3, 3), (2, 2)),
    "dense": (Problem(1, 6, 12, 12, 19, activation="relu"), (3, 3), (1, 1)),
}


@pytest.mark.parametrize("target", [HOST, SHARED], ids=["one thread", "three"])
@pytest.mark.parametrize("key", PAIRS)
def test_a_pair_equals_its_two_layers(key, target):
    first, kernel, stride = PAIRS[key]
    first, w, bias, x, _ = layer(first, 0.5)
    channels, pad = first.out_channels, kernel[0] // 2
    second = Problem(*first.out_shape, channels, kernel, stride, (pad,) * 4, groups=channels, activation="relu")
    assert expand_depthwise.refuses(first, second, replace(machine_of(target), l2=0)) is None
    second, filters, filter_bias, _, _ = layer(second, 1, seed=1)
    taker = pick(CPU.kernels, first, target)
    c = expand_depthwise.config(first, taker.name, target)
    depthwise = conv2d_nchw_depthwise.configs(second, target)[0]
    func = compile_func(expand_depthwise.prim_func(first, taker.name, c, second, depthwise, target), target)
    weights = BSR.from_conv(w, first.n) if first.n else w
    packed = [*taker.pack(first, weights, c).values(), bias]
    packed += [*conv2d_nchw_depthwise.pack(second, filters, depthwise).values(), filter_bias]
    out = tvm.runtime.tensor(np.full(out_planes(second), np.nan, np.float32))
    func["main"](*[tvm.runtime.tensor(a) for a in (to_planes(x), *packed)], out)
    truth = reference.conv2d(second, reference.conv2d(first, x, w, bias), filters, filter_bias)
    assert np.isfinite(out.numpy()).all()
    np.testing.assert_allclose(from_planes(out.numpy(), second.out_shape), truth, atol=2e-5 * np.abs(truth).max())


def test_what_is_no_pair_is_refused_with_a_reason():
    first, second = Problem(1, 8, 14, 14, 32), Problem(1, 32, 14, 14, 32, (3, 3), padding=SAME, groups=32)
    machine = machine_of(HOST)
    assert "fewer than" in expand_depthwise.refuses(first, second, machine)
    assert "no plain 1x1" in expand_depthwise.refuses(replace(first, stride=(2, 2)), second, machine)
    wider = replace(second, in_channels=64, out_channels=64, groups=64)
    assert "no depthwise" in expand_depthwise.refuses(first, wider, machine)
    assert "residual" in expand_depthwise.refuses(replace(first, residual=True), second, machine)
    large = Problem(1, 64, 112, 112, 64), Problem(1, 64, 112, 112, 64, (3, 3), padding=SAME, groups=64)
    assert "planes read" in expand_depthwise.refuses(*large, machine)
    assert expand_depthwise.refuses(replace(large[0], n=4, nnzb=6 * 64), large[1], machine) is None


@pytest.mark.parametrize("key", ["1x1", "wide remainder", "3x3 batch 2", "stride 2 projection", "N > channels"])
def test_threads_share_the_work(key):
    for density in (0, 0.5):
        p, w, bias, x, residual = layer(SPARSE[key], density)
        for taker in candidates(CPU.kernels, p, SHARED):
            configs = taker.kernel.configs(taker.problem, SHARED)
            by_split = {c.get("split"): c for c in reversed(configs)}
            for c in by_split.values():
                check(taker.kernel, taker.problem, c, w, bias, x, residual, SHARED)


def test_threads_cut_what_leaves_each_the_least():
    """Pixels where weights are few, unless tiles come out uneven; block rows where the image is small."""
    two = Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 2})

    def split(p: Problem) -> str:
        p = replace(p, n=4, nnzb=p.in_channels * p.out_channels // 8)
        return pick(CPU.kernels, p, two).configs(p, two)[0]["split"]

    assert split(Problem(1, 64, 56, 56, 256)) == split(Problem(1, 64, 56, 56, 64, (3, 3), padding=SAME)) == "pixels"
    assert split(Problem(1, 512, 7, 7, 2048)) == split(Problem(1, 256, 14, 14, 1024)) == "rows"
    assert busiest(Problem(1, 8, 8, 8, 20, n=4), {"parts": 2, "split": "rows"}, []) == 3 / 5
    assert busiest(Problem(1, 8, 8, 8, 20, n=4), {"parts": 2, "split": "pixels"}, [(3, 6), (1, 10)]) == 16 / 28


@pytest.mark.parametrize(
    "key", ["1x1", "tail of 4, several tiles", "tail of 2, N=1", "wide remainder", "1x1 7x7 plane"]
)
def test_panels_of_input_channels_add_up(key):
    p, w, bias, x, residual = layer(SPARSE[key], 0.5)
    for problem in (p, dense_twin(p)):
        kernel = pick(CPU.kernels, problem, HOST)
        c = next(c for c in kernel.configs(problem, HOST) if c["order"] == "tiles")
        for panel in (1, 4, p.in_channels - 1):
            check(kernel, problem, {**c, "panel": panel}, w, bias, x, residual)


COLUMNS = [k for k, p in (DENSE | SPARSE).items() if p.taps > 1 and p.groups == 1]


FEW = ("primes", "no padding", "uneven stride", "tail between rows", "N=3", "3x3 batch 2")


@pytest.mark.parametrize("key", sweep(COLUMNS, quick=FEW))
def test_columns_equal_reference_with_every_grouping(key):
    p, w, bias, x, residual = layer((DENSE | SPARSE)[key], 0.5)
    kernel = pick(CPU.kernels, p, HOST)
    for lanes, groups, strip, high in ((16, 1, 3, 2), (16, 2, 2, 2), (16, 4, 1, 1), (8, 2, 3, 3), (4, 1, 2, 1)):
        if (groups - 1) * -(-p.out_height // groups) < p.out_height:
            c = {"lanes": lanes, "rows": min(4, p.n or 4), "pixels": "columns", "high": high, "groups": groups}
            check(kernel, p, {**c, "strip": strip, "panel": p.in_channels}, w, bias, x, residual)


def test_empty_block_rows():
    p = Problem(1, 9, 10, 10, 12, (3, 3), padding=SAME, n=4)
    _, w, bias, x, residual = layer(p, 1)
    w[4:8] = 0
    p = replace(p, nnzb=BSR.from_conv(w, 4).nnzb)
    assert p.nnzb == 18
    kernel = pick(CPU.kernels, p, HOST)
    for c in kernel.configs(p, HOST):
        check(kernel, p, c, w, bias, x, residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    p, w, bias, x, residual = layer(Problem(1, 8, 9, 9, 8, n=4, residual=True, activation=activation), 0.5)
    kernel = pick(CPU.kernels, p, HOST)
    check(kernel, p, kernel.configs(p, HOST)[0], w, 4 * bias, x, residual)


@pytest.mark.parametrize("target", [AVX2, ARM], ids=["avx2", "aarch64"])
def test_every_kernel_compiles_for_other_targets(target):
    for p in (SPARSE["remainder"], SPARSE["classifier"], DENSE["stem"], DENSE["depthwise"], DENSE["classifier"]):
        p = layer(p, 0.5)[0]
        kernel = pick(CPU.kernels, p, target)
        assert "main" in compile_func(kernel.prim_func(p, kernel.configs(p, target)[0], target), target).inspect_source(
            "asm"
        )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_any_problem_stays_in_bounds_and_equals_reference(data):
    """TVM's bound checks on every load and store; scratch memory counts too."""
    draw = data.draw
    small = st.integers(1, 3)
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    depthwise = draw(st.booleans())
    channels = draw(st.integers(1, 9))
    p = Problem(
        batch=draw(st.integers(1, 2)),
        in_channels=channels,
        height=draw(st.integers(kernel[0] * 3, 20)),
        width=draw(st.integers(kernel[1] * 3, 20)),
        out_channels=channels if depthwise else draw(st.integers(1, 13)),
        kernel=kernel,
        stride=(draw(small), draw(small)),
        padding=tuple(draw(st.integers(0, 4)) for _ in range(4)),
        dilation=(draw(small), draw(small)),
        groups=channels if depthwise else 1,
        residual=draw(st.booleans()),
        n=0 if depthwise else draw(st.sampled_from([0, 1, 2, 3, 4, 8])),
    )
    p, w, bias, x, residual = layer(p, 0.5, seed=draw(st.integers(0, 99)))
    taker = draw(st.sampled_from(list(candidates(CPU.kernels, p, HOST))))
    c = draw(st.sampled_from(list(taker.kernel.configs(taker.problem, HOST))))
    with tvm.transform.PassContext(config={"tirx.instrument_bound_checkers": True}):
        check(taker.kernel, taker.problem, c, w, bias, x, residual)


def test_large_depthwise_kernels_have_a_configuration():
    for side in (13, 31):
        p = Problem(1, 8, 7, 7, 8, (side, side), padding=(side // 2,) * 4, groups=8)
        kernel = pick(CPU.kernels, p, HOST)
        assert kernel.name == "conv2d_nchw_depthwise"
        p, w, bias, x, residual = layer(p, 1)
        check(kernel, p, kernel.configs(p, HOST)[0], w, bias, x, residual)


def test_accumulators_stay_in_registers():
    """The tile's inner loop must not store: the reason why kerf.kernels.lowering turns a pass off."""
    p = layer(Problem(1, 64, 28, 28, 64, n=4), 0.5)[0]
    kernel = pick(CPU.kernels, p, AVX2)
    asm = compile_func(kernel.prim_func(p, kernel.configs(p, AVX2)[0], AVX2), AVX2).inspect_source("asm")
    lines = asm.splitlines()
    fused = [i for i, line in enumerate(lines) if "vfmadd" in line]
    assert len(fused) > 10
    between = lines[fused[0] : fused[10]]
    assert not [line for line in between if "vmov" in line and line.rstrip().endswith(")")]


def test_refusals_have_reasons_and_every_problem_has_a_taker():
    for p in (*DENSE.values(), *(layer(p, 0.5)[0] for p in SPARSE.values())):
        assert pick(CPU.kernels, p, HOST)
        assert [c for c in candidates(CPU.kernels, p, HOST) if c.problem == dense_twin(p)]
        for kernel in CPU.kernels:
            reason = kernel.refuses(p, HOST)
            assert reason is None or len(reason) > 8
    with pytest.raises(ValueError, match="no kernel for 8x9x9->12 3x3 g4"):
        pick(CPU.kernels, replace(DENSE["grouped"], n=2, nnzb=1), HOST)


def test_problem_round_trips_and_refuses_nonsense():
    p = SPARSE["N=3"]
    assert Problem.from_json(p.to_json()) == p
    assert (p.out_height, p.out_width) == (4, 12)
    with pytest.raises(ValueError, match="swash"):
        replace(p, activation="swash")
    with pytest.raises(ValueError, match="is empty"):
        Problem(1, 3, 2, 2, 4, (5, 5))
