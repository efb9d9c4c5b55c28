"""Kernels and networks on emulated ARM CPUs: every kernel equal to numpy, every network to ONNX Runtime.

Slow, and only where qemu and a cross compiler are; scripts/maintain/aarch64.sh says what to install and runs them. With
KERF_AARCH64_ONNXRUNTIME, the path of an aarch64 libonnxruntime, ONNX Runtime is emulated, too.
"""

import os
from dataclasses import replace

import numpy as np
import onnx
import pytest

import kerf
from kerf.deploy.compiler import targets
from kerf.kernels import reference
from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.cpu.int8 import dot, numbers
from kerf.kernels.cpu.layout import from_planes, out_planes, to_planes
from kerf.kernels.kernel import candidates
from scripts.maintain import _emulated as qemu
from tests.helpers import emulated, random_onnx
from tests.helpers.emulated import Case
from tests.helpers.onnx_networks import mobile
from tests.helpers.quantised_files import joined, quantised, residual
from tests.kernels.cpu import test_int8 as integers
from tests.kernels.cpu import test_kernels as floats

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(qemu.missing()), reason=qemu.missing() or "qemu is there"),
]
NAMES = ("rpi4", "rpi5", "graviton3")
ORT = os.environ.get("KERF_AARCH64_ONNXRUNTIME", "")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return qemu.library(tmp_path_factory.mktemp("aarch64") / "runtime")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_every_kernel_of_floats_equals_numpy(runtime, tmp_path, name, kind):
    target, cases, truths = targets.parse(name, 1), [], []
    for problem in (floats.DENSE if kind == "dense" else floats.SPARSE).values():
        p, w, bias, x, rest = floats.layer(problem, 0.5)
        for taker in candidates(CPU.kernels, p, target):
            configs = taker.kernel.configs(taker.problem, target)
            for c in {str(c): c for c in (configs[0], configs[-1])}.values():
                weights = BSR.from_conv(w, taker.problem.n) if taker.problem.n else w
                planes = [to_planes(a) for a in (x, *rest)]
                arrays = [planes[0], *taker.kernel.pack(taker.problem, weights, c).values(), bias, *planes[1:]]
                cases.append(Case(taker.kernel.prim_func(taker.problem, c, target), arrays, out_planes(p), "float32"))
                truths.append((p, reference.conv2d(p, x, w, bias, *rest), f"{taker.kernel.name} {c} {p.describe()}"))
    assert len(cases) > 30
    for y, (p, truth, what) in zip(emulated.results(cases, target, runtime, tmp_path / "k"), truths, strict=True):
        bound = 2e-5 * max(1, np.abs(truth).max())
        np.testing.assert_allclose(from_planes(y, p.out_shape), truth, atol=bound, err_msg=what)


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_of_integers_equals_numpy(runtime, tmp_path, name):
    target, cases, truths = targets.parse(name, 1), [], []
    for problem in integers.PROBLEMS.values():
        given = integers.layer(problem)
        p = replace(problem, nnzb=BSR.from_conv(given["w"], problem.n).nnzb) if problem.n else problem
        for taker in candidates(CPU.kernels, p, target):
            c = taker.kernel.configs(taker.problem, target)[0]
            weights = BSR.from_conv(given["w"], taker.problem.n) if taker.problem.n else given["w"]
            signed = dot.DOTS[c["dot"]].signed if "dot" in c else False
            about = (given["w"], given["bias"], given["weight_scale"], given["types"])
            packed = taker.kernel.pack(taker.problem, weights, c) | numbers.arrays(p, *about, signed=signed)
            arrays = [to_planes(given["x"]), *packed.values()]
            arrays += [to_planes(given["residual"])] if p.residual else []
            function = taker.kernel.prim_func(taker.problem, c, target)
            cases.append(Case(function, arrays, out_planes(p), str(np.dtype(p.y.numpy))))
            truths.append((p, given))
    assert len(cases) > 30
    for y, (p, given) in zip(emulated.results(cases, target, runtime, tmp_path / "k"), truths, strict=True):
        integers.compare(from_planes(y, p.out_shape), p, given)


def drawn(seed: int):
    def make(path):
        onnx.save(random_onnx.network(seed), path)
        return path

    return make


def integers_of(make):
    return lambda path: quantised(make(path.with_suffix(".f32.onnx")), path)


NETWORKS = {
    **{"mobile": mobile, "residual": residual, "joined": joined, "two outputs": drawn(13), "drawn": drawn(2)},
    **{f"{make.__name__} int8": integers_of(make) for make in (mobile, residual, joined)},
}


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_onnx_runtime_under_the_same_emulation(runtime, tmp_path, name, target):
    path = NETWORKS[name](tmp_path / "model.onnx")
    bundle = kerf.compile(path, trials=0, target=target, against=())
    x = {}
    for n, t in bundle.manifest["inputs"].items():
        x[n] = np.random.default_rng(3).standard_normal(t["shape"]).astype(t["dtype"])
        np.save(tmp_path / f"{n}.npy", x[n])
    files = [tmp_path / f"{n}.npy" for n in x]
    qemu.emulated(runtime, target, bundle.path, *files, "--out", tmp_path / "y")
    y = np.fromfile(tmp_path / "y", np.float32)
    truth = emulated_onnxruntime(runtime, target, path, bundle, files, tmp_path) if ORT else here(path, x)
    bound = 0.06 if "int8" in name else 2e-5  # of integers, sums that round apart differ by a step
    assert np.abs(y - truth).max() <= bound * max(1, np.abs(truth).max())


def here(path, x) -> np.ndarray:
    import onnxruntime

    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, x)
    return np.concatenate([y.ravel() for y in found])


def emulated_onnxruntime(runtime, target, path, like, files, folder) -> np.ndarray:
    """The network in ONNX Runtime's own aarch64 library, called by libkerf."""
    from kerf.deploy.frontend.convert import convert
    from kerf.deploy.partition.plain import plain
    from kerf.deploy.plans import steps
    from kerf.deploy.runtime import bundle

    made, out = steps.steps(plain(convert(path), "onnxruntime"), None), folder / "ort.kerf"
    contents = {k: v for k, v in like.manifest.items() if k not in ("format", "weights", "sha256")}
    out.mkdir()
    bundle.write(out, {**contents, "plans": made.entries}, {}, made.weights, made.models, "", programs=[()])
    qemu.emulated(runtime, target, out, *files, "--out", folder / "truth", KERF_ONNXRUNTIME=ORT)
    return np.fromfile(folder / "truth", np.float32)
