"""GPU kernels' generated code, run on the host's CPU against the reference: no GPU, no CUDA compiler."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tvm.target import Target

from kerf.kernels import reference
from kerf.kernels.bsr import BSR
from kerf.kernels.cuda import KERNELS, planewise
from kerf.kernels.cuda.emit import reorder
from kerf.kernels.cuda.emit.fragments import round_to_tf32
from kerf.kernels.cuda.host import cases, cuda_on_host, problems
from kerf.kernels.cuda.layout import from_rows, in_rows, out_rows, rows_of, to_rows
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem
from tests.helpers.sweeps import sweep

HOPPER = Target({"kind": "cuda", "arch": "sm_90"}, host={"kind": "llvm"})
BY_NAME = {kernel.name: kernel for kernel in KERNELS}
ITEMS = list(cases.checks(HOPPER))  # what scripts/gpu/gpu_bench.py checks on a GPU
SAME = (1, 1, 1, 1)
TOLERANCE = {"f32": 1e-5, "tf32": 1e-3, "f16": 1e-3}

pytestmark = pytest.mark.skipif(cuda_on_host.missing() is not None, reason=str(cuda_on_host.missing()))


def called(item) -> str:
    return f"{item.kernel}-{item.group}-{'-'.join(str(v) for v in item.config.values())}".replace(" ", "_")


def one_of_each() -> list:
    """Of every kernel one case, with blocks missing where it is sparse; one more of those in slices.

    A whole network in f16 is in tests/deploy/compiler/test_gpu.py.
    """
    found: dict[tuple, object] = {}
    for item in ITEMS:
        if item.density == 0.3 or "bsr" not in item.kernel:
            sliced = item.config.get("slices", 1) > 1
            found.setdefault((item.kernel, sliced), item)
    return [*found.values()]


def rounded(p: Problem, a: np.ndarray) -> np.ndarray:
    return a.astype(p.dtype).astype(np.float64)


def measure(item, folder: Path) -> tuple[float, cuda_on_host.Result]:
    """(relative error in norm, what ran)"""
    p, c, kernel = Problem.from_json(item.problem), item.config, BY_NAME[item.kernel]
    _, w, bias = problems.weights(replace(p, nnzb=0), item.density)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(p.in_shape)
    residual = rng.standard_normal(p.out_shape) if p.residual else None
    packed = kernel.pack(p, BSR.from_conv(w, p.n) if p.n else w, c)
    arrays = {"x": to_rows(x).astype(p.dtype), "bias": bias, **packed}
    if p.residual:
        arrays["residual"] = to_rows(residual).astype(p.dtype)
    launch = cuda_on_host.lower(kernel.prim_func(p, c, HOPPER), HOPPER)
    # TVM adds barriers where it sees plain stores to shared memory: all threads would wait within a chunk's product
    assert "__syncthreads" not in launch.source, "no barriers but the kernel's own"
    ran = cuda_on_host.run(launch, arrays, np.empty(out_rows(p), p.dtype), folder)
    assert np.isfinite(ran.y).all(), "every number is written, those behind a row's end too"
    truth = reference.conv2d(p, rounded(p, x), w, bias, rounded(p, residual) if p.residual else None)
    return float(np.linalg.norm(from_rows(ran.y, p.out_shape) - truth) / np.linalg.norm(truth)), ran


@pytest.mark.parametrize("item", sweep(ITEMS, quick=one_of_each()), ids=called)
def test_kernel_equals_the_reference(item, tmp_path):
    error, ran = measure(item, tmp_path)
    assert error <= TOLERANCE[Problem.from_json(item.problem).precision]
    assert not ran.conflicts > (2 if item.kernel.endswith("panels") else 1.05), "rows of a matrix meet in banks"


BROKEN = {
    "a copy is not waited for": ("_wait_group_async_wait_group_2()", "_commit_group_async_commit_group()", "finite"),
    "threads do not wait for the others' copies": ("tvm_builtin_cuda_cta_sync()", "(void)0", "finite"),
    "the lane of a weight is wrong": ("_ptr_5[0], _ptr_5[1]", "_ptr_5[1], _ptr_5[0]", "error"),
    "a bias lies outside its array": ("bias_ptr[", "bias_ptr[999 + ", "AddressSanitizer"),
    "a copy is not aligned": ("((int)threadIdx.x) * 8)", "((int)threadIdx.x) * 4)", "unaligned"),
}


def test_barriers_at_different_places_are_found(tmp_path):
    name, func, arrays, expected = next(c for c in planewise_cases() if c[0].startswith("mean"))
    launch = cuda_on_host.lower(func, HOPPER)
    apart = "if (threadIdx.x < 5) {\n__syncthreads();\n} else {\n__syncthreads();\n}"
    launch = replace(launch, source=launch.source.replace("__syncthreads();", apart, 1))
    y = np.empty(rows_of(expected.shape), name.split()[1])
    with pytest.raises(RuntimeError, match="at different places"):
        cuda_on_host.run(launch, arrays, y, tmp_path)


def test_transposes_go_through_different_banks():
    for n in (1, 2, 3, 8, 17, 64):
        images, pixels, pitch = reorder._sizes((n, 3, 50, 50))
        assert images * pixels == reorder.NUMBERS
        lane = np.arange(32)
        banks = (lane % images * pitch + lane // images) % 32
        assert len(set(banks)) == 32, n
        source = cuda_on_host.lower(reorder.to_rows((n, 3, 50, 50), "float16"), HOPPER).source
        assert n == 1 or str(pitch) in source, "TVM keeps the distance"


FOUND = ("a copy is not waited for", "the lane of a weight is wrong", "a bias lies outside its array")  # each its way


@pytest.mark.parametrize("defect", sweep(BROKEN, quick=FOUND))
def test_defects_are_found(defect, tmp_path, monkeypatch):
    """Such as a GPU would let pass more often than not."""
    item = next(i for i in ITEMS if i.group == "N=32 f16 0.3" and i.kernel.endswith("bsr_mma"))
    before, after, words = BROKEN[defect]
    lower = cuda_on_host.lower

    def lower_and_break(*args):
        launch = lower(*args)
        assert before in launch.source
        return replace(launch, source=launch.source.replace(before, after))

    monkeypatch.setattr(cuda_on_host, "lower", lower_and_break)
    if words == "error":
        assert measure(item, tmp_path)[0] > 0.1
    else:
        with pytest.raises((RuntimeError, AssertionError), match=words if words != "finite" else "every number"):
            measure(item, tmp_path)


def planewise_cases():
    """(name, function, arrays by name, expected images)"""
    rng = np.random.default_rng(0)
    for n, dtype in ((3, "float32"), (1, "float16"), (40, "float16")):
        shape = (n, 5, 7, 6)
        x = rng.standard_normal(shape).astype(dtype).astype(np.float32)
        factor = rng.standard_normal((n, 5, 1, 1)).astype(dtype).astype(np.float32)
        rows = {"x": to_rows(x).astype(dtype)}
        yield f"mean {dtype} {n}", planewise.mean(shape, dtype), rows, x.mean((2, 3), keepdims=True)
        yield f"to_rows {dtype} {n}", reorder.to_rows(shape, dtype), {"x": x}, x
        yield f"from_rows {dtype} {n}", reorder.from_rows(shape, dtype), rows, x
        if n != 3:
            continue
        pool = Problem(*shape, 5, (3, 3), (2, 2), SAME, groups=5, **types_of("f16" if dtype == "float16" else "f32"))
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
        yield f"max_pool {dtype}", planewise.max_pool(pool, dtype), rows, views.max((4, 5))
        by = {**rows, "factor": to_rows(factor).astype(dtype)}
        yield f"scale {dtype}", planewise.scale(shape, dtype), by, x * factor


OPERATORS = {name.replace(" ", "_"): case for name, *case in planewise_cases()}
FEW = ("mean_float32_3", "to_rows_float16_40", "from_rows_float32_3")  # test_gpu.py runs all of them for one image


@pytest.mark.parametrize("name", sweep(OPERATORS, quick=FEW))
def test_operators_without_weights(name, tmp_path):
    func, arrays, expected = OPERATORS[name]
    back = name.startswith("from_rows")
    shape = expected.shape if back else rows_of(expected.shape)
    dtype = "float32" if back or "float32" in name else "float16"
    ran = cuda_on_host.run(cuda_on_host.lower(func, HOPPER), arrays, np.empty(shape, dtype), tmp_path)
    assert np.isfinite(ran.y).all(), "what fills rows up is finite"
    y = ran.y if back else from_rows(ran.y, expected.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-3 if dtype == "float16" else 1e-6, atol=1e-6)


def test_shapes_of_the_cases_hurt():
    shapes = [Problem.from_json(item.problem) for item in ITEMS]
    assert {p.batch % 8 == 0 for p in shapes} == {True, False}
    assert any(in_rows(p)[1] % 8 == 0 and p.height * p.width * p.batch % 8 for p in shapes), "rows are filled up"
    assert any(p.n and not p.nnzb for p in shapes), "no blocks at all"
    assert round_to_tf32(np.float32([1 + 2**-12])) == 1
