"""Every kernel of bytes against numpy's integers, on shapes and numbers chosen to hurt."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu

from kerf.kernels import reference
from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.cpu.int8 import conv2d_nchw_bsr_quads, conv2d_nchw_dense_quads, dot, numbers, quads
from kerf.kernels.cpu.int8.dot import DOTS, dots
from kerf.kernels.cpu.int8.strips import Strips, geometry, is_flat
from kerf.kernels.cpu.layout import from_planes, out_planes, to_planes
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.kernel import candidates
from kerf.kernels.lowering import compile_func
from kerf.kernels.pointwise.pair import products
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType
from tests.helpers.sweeps import sweep

HOST = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 1})
SHARED = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 3})
AVX2 = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})
BYTES, WEIGHTS = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
SAME = (1, 1, 1, 1)


def problem(*args, y=BYTES, **kwargs) -> Problem:
    return Problem(*args, x=BYTES, w=WEIGHTS, y=y, **kwargs)


PROBLEMS = {
    "1x1": problem(1, 13, 14, 14, 24),
    "1x1 sparse": problem(1, 24, 14, 14, 32, n=4, activation="relu6"),
    "1x1 to floats": problem(1, 24, 14, 14, 32, n=4, y=F32, activation="relu"),
    "residual": problem(1, 24, 7, 7, 32, n=8, residual=True, activation="relu"),
    "residual of floats": problem(1, 24, 7, 7, 30, n=4, residual=True, residual_type=F32),
    "residual to floats": problem(2, 9, 6, 6, 22, residual=True, residual_type=BYTES, y=F32),
    "4x4 planes": problem(1, 40, 4, 4, 12, n=4),
    "3x3 planes": problem(1, 40, 3, 3, 13, n=4, activation="hardswish"),
    "a clip between two steps": problem(1, 10, 9, 9, 22, n=4, activation="clip", alpha=-0.305, beta=0.4),
    "remainder": problem(1, 10, 9, 9, 22, n=4, activation="clip", alpha=-0.3, beta=0.4),
    "N=1": problem(1, 13, 10, 10, 7, (3, 3), padding=SAME, n=1),
    "N=3": problem(1, 3, 9, 33, 5, (3, 3), (2, 3), (2, 0, 1, 4), (2, 1), n=3, activation="silu", residual=True),
    "N=32": problem(1, 16, 12, 12, 64, (3, 3), padding=SAME, n=32),
    "N > channels": problem(1, 5, 12, 12, 6, n=8),
    "primes": problem(1, 7, 11, 13, 5, (3, 3), padding=SAME),
    "3x3 batch 2": problem(2, 12, 28, 28, 16, (3, 3), padding=SAME, n=4, activation="relu", residual=True),
    "5x5 to floats": problem(1, 5, 11, 11, 8, (5, 5), padding=(2, 2, 2, 2), n=4, y=F32),
    "stem": problem(1, 3, 33, 33, 10, (7, 7), (2, 2), (3, 3, 3, 3), activation="relu6"),
    "stride 2 projection": problem(1, 16, 14, 14, 24, (1, 1), (2, 2), n=4),
    "stride 2 projection of whole vectors": problem(2, 16, 29, 29, 24, (1, 1), (2, 2), n=4, residual=True),
    "3x3 stride 2 sparse": problem(1, 16, 28, 28, 10, (3, 3), (2, 2), SAME, n=4, activation="relu"),
    "3x3 sparse": problem(1, 13, 14, 14, 18, (3, 3), padding=SAME, n=4),
    "3x3 without padding": problem(1, 9, 10, 19, 12, (3, 3), n=4),
    "long rows": problem(1, 6, 2, 2101, 8, (1, 3), padding=(0, 1, 0, 1), n=4, residual=True),
    "long depthwise rows": problem(1, 3, 3, 2101, 3, (3, 3), padding=SAME, groups=3, activation="relu6"),
    "planes of a pixel": problem(1, 9, 1, 1, 16, (3, 3), padding=SAME, n=4),
    "planes of a column": problem(1, 9, 8, 1, 16, (5, 5), (2, 1), (2, 2, 2, 2), n=4),
    "dilated": problem(2, 4, 12, 15, 6, (3, 5), (2, 1), (0, 1, 2, 0), (2, 1), residual=True),
    "no padding": problem(1, 3, 9, 10, 4, (3, 3)),
    "grouped": problem(1, 8, 9, 9, 12, (3, 3), padding=SAME, groups=4),
    "grouped sparse": problem(1, 32, 9, 9, 24, (3, 3), padding=SAME, groups=2, n=4, activation="relu"),
    "grouped 1x1 sparse": problem(2, 24, 7, 7, 32, groups=2, n=8, residual=True),
    "odd groups": problem(1, 6, 7, 7, 9, (1, 1), groups=3, activation="hardswish"),
    "depthwise": problem(2, 19, 14, 14, 19, (3, 3), padding=SAME, groups=19, activation="relu6", residual=True),
    "depthwise to bytes": problem(2, 19, 14, 14, 19, (3, 3), padding=SAME, groups=19, activation="relu6"),
    "depthwise dilated": problem(1, 17, 15, 20, 17, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=17),
    "depthwise 7x7": problem(1, 5, 9, 65, 5, (7, 7), padding=(3, 3, 3, 3), groups=5, activation="silu"),
    "depthwise, rows of two": problem(1, 33, 13, 30, 33, (3, 5), (2, 2), (1, 2, 1, 2), groups=33),
    "depthwise, odd strides": problem(1, 6, 16, 21, 6, (3, 3), (3, 1), (0, 0, 2, 1), groups=6),
    "depthwise of one pixel": problem(1, 6, 1, 1, 6, (3, 3), padding=SAME, groups=6),
    "depthwise stride 2": problem(1, 17, 23, 29, 17, (5, 5), (2, 2), (2, 2, 2, 2), groups=17, activation="hardswish"),
    "depthwise 3x3 planes": problem(1, 33, 3, 3, 33, (3, 3), padding=SAME, groups=33, y=F32),
    "depthwise 1x1": problem(1, 33, 7, 7, 33, (1, 1), groups=33),
    "classifier": problem(1, 37, 1, 1, 101, y=F32),
    "classifier, batch 3": problem(3, 40, 1, 1, 64, activation="relu"),
    "sparse classifier": problem(2, 40, 1, 1, 30, n=4, residual=True),
    "tokens": problem(49, 32, 1, 1, 48, activation="gelu", residual=True),
    "1-D": problem(1, 8, 1, 100, 12, (1, 5), padding=(0, 2, 0, 2), n=4),
}
QUICK = [
    "grouped sparse",
    "1x1 sparse",
    "residual",
    "N=3",
    "3x3 batch 2",
    "grouped",
    "depthwise",
    "classifier",
    "tokens",
]
QUICK += ["a clip between two steps", "planes of a pixel", "stride 2 projection of whole vectors"]
QUICK += ["depthwise to bytes", "depthwise 7x7", "depthwise, rows of two"]


def weights(p: Problem, rng: np.random.Generator, extreme: bool = False) -> np.ndarray:
    """Of a sparse problem half of the blocks are zero, all of the first block row and of its last channel."""
    w = np.clip(np.rint(rng.standard_normal(p.weight_shape) * 40), -128, 127)
    if extreme:
        w = rng.choice([-128, 127], p.weight_shape)
    if p.n:
        rows = -(-p.out_channels // p.n)
        kept = rng.random((rows, p.in_channels // p.groups)) < 0.5
        kept[0] = False
        w = w * np.repeat(kept, p.n, axis=0)[: p.out_channels, :, None, None]
    return w.astype(np.int8)


def layer(p: Problem, zero: int = 7, seed: int = 0, extreme: bool = False) -> dict:
    """Numbers for a problem, in such steps that few outputs saturate."""
    rng = np.random.default_rng(seed)
    w = weights(p, rng, extreme)
    scales = rng.uniform(0.001, 0.002, p.out_channels).astype(np.float32)
    types = {"x": TensorType("u8", 0.02, zero), "w": WEIGHTS}
    if p.y.quantised:
        types["y"] = TensorType("u8", 0.03 * float(np.sqrt(w.shape[1] * p.taps)) / 6, 101)
    x = rng.choice([0, 255], p.in_shape) if extreme else rng.integers(0, 256, p.in_shape)
    found = {"x": x.astype(np.uint8), "w": w, "weight_scale": scales, "types": types}
    found["bias"] = rng.standard_normal(p.out_channels).astype(np.float32)
    if p.residual:
        kind = p.residual_type or p.y
        found["residual"] = rng.standard_normal(p.out_shape).astype(np.float32)
        if kind.quantised:
            types["residual_type"] = TensorType("u8", 0.01, 33)
            found["residual"] = rng.integers(0, 256, p.out_shape).astype(np.uint8)
    return found


def run(kernel, p: Problem, config: dict, given: dict, target: Target = HOST, module=None) -> np.ndarray:
    packed = kernel.pack(p, BSR.from_conv(given["w"], p.n) if p.n else given["w"], config)
    signed = dot.DOTS[config["dot"]].signed if "dot" in config else False
    arrays = packed | numbers.arrays(p, given["w"], given["bias"], given["weight_scale"], given["types"], signed=signed)
    images = [to_planes(given["x"]), *arrays.values()]
    images += [to_planes(given["residual"])] if p.residual else []
    y = tvm.runtime.tensor(np.full(out_planes(p), np.nan if p.y == F32 else 77, p.y.numpy))
    module = module or compile_func(kernel.prim_func(p, config, target), target)
    module["main"](*[tvm.runtime.tensor(a) for a in images], y)
    assert np.isfinite(y.numpy()).all()
    return from_planes(y.numpy(), p.out_shape)


def compare(y: np.ndarray, p: Problem, given: dict) -> None:
    """Sums are exact, so floats are equal but for the rounding of float32, and bytes but where it meets a half."""
    truth = reference.conv2d_integer(p, **given)
    if not p.y.quantised:
        np.testing.assert_allclose(y, truth, rtol=2e-6, atol=2e-6 * np.abs(truth).max())
        return
    difference = np.abs(y.astype(int) - truth.astype(int))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 1 + y.size // 1000
    assert len(np.unique(truth)) > 3


def tried(p: Problem, target: Target, given: dict, most: int) -> None:
    p = replace(p, nnzb=BSR.from_conv(given["w"], p.n).nnzb) if p.n else p
    found = list(candidates(CPU.kernels, p, target))
    assert found
    for candidate in found:
        for config in candidate.kernel.configs(candidate.problem, target)[:most]:
            compare(run(candidate.kernel, candidate.problem, config, given, target), p, given)


@pytest.mark.parametrize("name", sweep(PROBLEMS, QUICK))
def test_kernels(name):
    tried(PROBLEMS[name], HOST, layer(PROBLEMS[name]), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_configuration(name):
    tried(PROBLEMS[name], HOST, layer(PROBLEMS[name], seed=1), 100)


@pytest.mark.parametrize("name", sweep(PROBLEMS, ["3x3 batch 2", "1x1 sparse"]))
def test_threads(name):
    tried(PROBLEMS[name], SHARED, layer(PROBLEMS[name]), 3)


@pytest.mark.parametrize("zero", [0, 128, 255])
@pytest.mark.parametrize("name", ["1x1 to floats", "5x5 to floats", "depthwise 3x3 planes", "classifier"])
def test_zero_points_and_sums_that_would_saturate_16_bits(name, zero):
    tried(PROBLEMS[name], HOST, layer(PROBLEMS[name], zero, extreme=True), 1)


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("name", ["1x1 to floats", "3x3 batch 2", "planes of a pixel"])
def test_layout_of_wider_vectors(name, width):
    """What a CPU with a dot product is given, with plain arithmetic in the instruction's place."""
    p, given = PROBLEMS[name], layer(PROBLEMS[name])
    p = replace(p, nnzb=BSR.from_conv(given["w"], p.n).nnzb)
    kernel = next(k for k in CPU.kernels if k.name == "conv2d_nchw_bsr_quads")
    config = {"dot": "plain", "bytes": width, "rows": 4, "strip": 2}
    compare(run(kernel, p, config, given), p, given)


OTHER_TARGETS = [
    {"kind": "llvm", "mcpu": "znver4"},
    {"kind": "llvm", "mcpu": "sierraforest"},
    {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"},
    {"kind": "llvm", "mcpu": "x86-64-v3"},
]


@pytest.mark.parametrize(
    ("target", "instruction"), [*zip(OTHER_TARGETS, ("vpdpbusd", "vpdpbusd", "sdot", "vpmaddubsw"), strict=True)]
)
@pytest.mark.parametrize("name", ["1x1 sparse", "3x3 batch 2", "classifier", "tokens"])
def test_instructions_of_other_cpus(name, target, instruction):
    p, target = PROBLEMS[name], Target(target)
    p = replace(p, nnzb=5) if p.n else p
    kernel = next(c.kernel for c in candidates(CPU.kernels, p, target) if "quads" in c.kernel.name)
    module = compile_func(kernel.prim_func(p, kernel.configs(p, target)[0], target), target)
    code = module.inspect_source("asm")
    wide = "vpmaddwd" if instruction == "vpmaddubsw" and kernel.name == "dense_nc_quads_columns" else instruction
    assert wide in code


def summed(p: Problem, middle=BYTES, **kwargs) -> Problem:
    return replace(p, residual=True, middle=middle, **kwargs)


SUMS = {
    "1x1 sparse": summed(problem(1, 24, 14, 14, 32, n=4, activation="relu")),
    "1x1 of small planes": summed(problem(1, 24, 7, 7, 30), residual_type=F32),
    "3x3": summed(problem(2, 12, 14, 14, 16, (3, 3), padding=SAME, n=4, activation="relu6")),
    "signed": summed(problem(1, 10, 9, 9, 22, n=4), middle=TensorType("i8", 1.0, 0)),
    "depthwise": summed(problem(1, 19, 14, 14, 19, (3, 3), padding=SAME, groups=19), activation="relu"),
    "tokens": summed(problem(49, 32, 1, 1, 48), activation="clip", alpha=-0.305, beta=0.9),
    "to floats": summed(problem(1, 16, 8, 8, 16, n=4, y=F32), residual_type=BYTES, activation="hardswish"),
}


def without_sum(p: Problem) -> Problem:
    return replace(p, y=BYTES, middle=None, residual=False, residual_type=None, activation="none", alpha=0, beta=0)


def layer_and_sum(kernel, p: Problem, config: dict, given: dict, module) -> np.ndarray:
    """``module``: the kernel of the layer without the sum; behind it ONNX's nodes."""
    types, residual = given["types"], given["residual"]
    middle = types["middle"]
    moved = 128 if middle.dtype == "i8" else 0  # images of kernels are unsigned
    first = {"x": types["x"], "w": WEIGHTS, "y": TensorType("u8", middle.scale, middle.zero + moved)}
    part = {key: given[key] for key in ("x", "w", "weight_scale", "bias")}
    m = run(kernel, without_sum(p), config, part | {"types": first}, module=module)
    assert (m.min(), m.max()) == (0, 255)
    value = reference.dequantise(m.astype(int) - moved, middle)
    value += residual if residual.dtype == np.float32 else reference.dequantise(residual, types["residual_type"])
    value = reference.activate(p.epilogue, value).astype(np.float32)
    return reference.quantise(value, types["y"]) if p.y.quantised else value


def with_sum(p: Problem, zero: int, exact: bool = False) -> dict:
    """Numbers with which the middle type saturates at both ends; ``exact``: no product meets a half, or is rounded."""
    given = layer(p, zero)
    low = -128 if p.middle.dtype == "i8" else 0
    spread = float(np.sqrt(given["w"].shape[1] * p.taps))
    given["types"]["middle"] = TensorType(p.middle.dtype, 0.0013017 * spread, low + (zero + 100) % 256)
    if "residual_type" in given["types"]:
        given["types"]["residual_type"] = TensorType("u8", 0.0013713 * spread, 255 - zero)
    if exact:
        rng, scale = np.random.default_rng(3), 2.0 ** np.round(np.log2(0.0013 * spread))
        given["types"] |= {"x": TensorType("u8", 2**-5, zero), "middle": replace(given["types"]["middle"], scale=scale)}
        given["weight_scale"] = (2.0 ** rng.integers(-10, -8, p.out_channels)).astype(np.float32)
        given["bias"] = (scale * (rng.integers(-99, 99, p.out_channels) + 2**-9)).astype(np.float32)
    return given


def every_kernel(p: Problem, target: Target, w: np.ndarray, most: int = 1):
    p = replace(p, nnzb=BSR.from_conv(w, p.n).nnzb) if p.n else p
    found = list(candidates(CPU.kernels, p, target))
    assert found
    for candidate in found:
        for config in candidate.kernel.configs(candidate.problem, target)[:most]:
            yield candidate.kernel, candidate.problem, config


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_has_the_bytes_of_a_layer_and_a_sum(name):
    p, of_zero = SUMS[name], {zero: with_sum(SUMS[name], zero) for zero in (0, 128, 255)}
    for kernel, q, config in every_kernel(p, HOST, of_zero[0]["w"]):
        one, two = (compile_func(kernel.prim_func(f, config, HOST), HOST) for f in (q, without_sum(q)))
        for given in of_zero.values():
            y, truth = run(kernel, q, config, given, module=one), layer_and_sum(kernel, q, config, given, two)
            off = 0 if p.y.quantised else 2e-6
            np.testing.assert_allclose(y, truth, rtol=off, atol=off)
            assert len(np.unique(y)) > 9


@pytest.mark.parametrize("target", [HOST, *([AVX2] if "avx2" in llvm_get_cpu_features(HOST) else [])], ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_by_numpy(name, target):
    p, given = SUMS[name], with_sum(SUMS[name], 128, exact=True)
    truth, off = reference.conv2d_integer(p, **given), 0 if p.y.quantised else 2e-6
    for kernel, q, config in every_kernel(p, target, given["w"]):
        np.testing.assert_allclose(run(kernel, q, config, given, target), truth, rtol=off, atol=off)


def test_the_sum_of_every_two_bytes():
    """In random scales, and in scales whose sums meet halves, but for those in which no two products are the sum."""
    p = summed(problem(1, 1, 256, 256, 1))
    x, residual = (np.broadcast_to(a.astype(np.uint8), p.in_shape) for a in (np.arange(256)[:, None], np.arange(256)))
    w, one, rng = np.ones((1, 1, 1, 1), np.int8), np.ones(1, np.float32), np.random.default_rng(0)
    drawn = [(*np.exp(rng.uniform(-5, 1, 3)), *rng.integers(0, 256, 3)) for _ in range(12)]
    drawn += [(0.5, 0.25, 1.0, 3, 8, 100), (0.5, 0.5, 1.0, 128, 0, 0), (0.03, 0.03, 0.03, 7, 9, 11)]
    found = [(*some, compile_func(some[0].prim_func(*some[1:], HOST), HOST)) for some in every_kernel(p, HOST, w)]
    refused = 0
    for *scales, a, b, c in drawn:
        m, r, y = (TensorType("u8", float(np.float32(s)), int(z)) for s, z in zip(scales, (a, b, c)))
        types = {"x": m, "middle": m, "residual_type": r, "y": y}
        if products(m, r, y, p.epilogue) is None:
            refused += 1
            continue
        given = {"x": x, "w": w, "weight_scale": one, "bias": 0 * one, "types": types, "residual": residual}
        truth = reference.quantise(reference.dequantise(x, m) + reference.dequantise(residual, r), y)
        np.testing.assert_array_equal(reference.conv2d_integer(p, **given), truth)
        for kernel, q, config, module in found:
            np.testing.assert_array_equal(run(kernel, q, config, given, HOST, module), truth)
    assert refused < 2


@pytest.mark.parametrize("target", OTHER_TARGETS)
def test_sums_are_rounded_once_on_every_cpu(target):
    """A multiplication and an addition where the nodes have them, and no call for what the CPU cannot."""
    p = summed(problem(1, 24, 14, 14, 32, n=4, nnzb=5, activation="relu"))
    kernel = next(candidates(CPU.kernels, p, Target(target))).kernel
    module = compile_func(kernel.prim_func(p, kernel.configs(p, Target(target))[0], Target(target)), Target(target))
    code = module.inspect_source("asm")
    assert "fmaf" not in code
    assert "fma" in code or "fmla" in code


def test_no_pair_of_packed_weights_exceeds_16_bits():
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (8, 13, 3, 3)).astype(np.int8)
    packed = quads.pack(BSR.from_conv(w, 4), w.shape[1], 9, 2, paired=True)
    for words in (packed["data"], packed["rest"]):
        pairs = words.view(np.int8).astype(int).reshape(-1, 2)
        assert np.maximum(pairs, 0).sum(axis=1).max() <= dot.LARGEST_PAIR
        assert np.minimum(pairs, 0).sum(axis=1).min() >= -dot.LARGEST_PAIR
    assert len(packed["rest_at"]) == packed["rest_indptr"][-1] > 0
    plain = quads.pack(BSR.from_conv(w, 4), w.shape[1], 9, 2, paired=False)
    assert plain["data"].view(np.int8).astype(int).sum() == w.astype(int).sum()
    cut = packed["data"].view(np.int8).astype(int).sum() + packed["rest"].view(np.int8).astype(int).sum()
    assert cut == w.astype(int).sum()


AVX2, ZEN4 = (machine_of(Target({"kind": "llvm", "mcpu": name})) for name in ("x86-64-v3", "znver4"))


@pytest.mark.parametrize("machine", [AVX2, ZEN4], ids=["avx2", "zen4"])
def test_strips_cover_every_pixel(machine):
    p = PROBLEMS["3x3 batch 2"]
    for strip in (1, 3, 28):
        for width in (32, 64):
            (s,) = Strips.of(p, {"bytes": width, "strip": strip}, machine)
            assert s.count * s.rows >= p.out_height
            assert s.region >= s.room >= s.tiles * s.width + s.left * s.lanes
            covered = s.tiles * s.width + s.left * s.lanes
            assert covered >= s.size - (s.planes.pitch - p.out_width)
            assert covered < s.size + (s.lanes or s.width)
    p = PROBLEMS["1x1"]  # 196 pixels in planes of 208
    found = Strips.of(p, {"bytes": 64, "strip": 1}, machine)
    assert [(s.begin, s.width, s.count) for s in found] == [(0, 64, 3), (192, 16, 1)]
    assert found[1].vectors == (1 if machine is ZEN4 else 4)
    assert [(s.size, s.count) for s in Strips.of(p, {"bytes": 32, "strip": 4}, machine)] == [(128, 2)]


@pytest.mark.skipif(DOTS[dots(machine_of(HOST))[0]].paired, reason="products of pairs are of a panel's pixels")
@pytest.mark.parametrize("key", ["panel", "near"])
def test_pixels_reach_their_products_in_every_way(key):
    """Side by side in a panel or in registers, from where they lie or from a copy of the strip's."""
    names = {"panel": ["3x3 stride 2 sparse", "3x3 sparse", "3x3 batch 2"]}
    for name in names.get(key, ["1x1 sparse", "residual", "1x1", "stride 2 projection of whole vectors"]):
        p, given = PROBLEMS[name], layer(PROBLEMS[name])
        p = replace(p, nnzb=BSR.from_conv(given["w"], p.n).nnzb) if p.n else p
        kernel = conv2d_nchw_bsr_quads if p.n else conv2d_nchw_dense_quads
        for value in (0, 1):
            config = next(c for c in kernel.configs(p, HOST) if c.get(key, int(key == "panel")) == value)
            compare(run(kernel, p, config, given), p, given)


def test_a_strided_1x1_layer_is_read_as_one_of_the_pixels_that_it_reads():
    p = problem(1, 8, 28, 28, 8, stride=(2, 2))
    assert is_flat(geometry(p))
    assert is_flat(geometry(replace(p, padding=SAME)))
    assert not is_flat(geometry(replace(p, kernel=(3, 3))))
