"""Networks for NVIDIA GPUs: built here without one; run where there is one (marker gpu)."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from kerf.deploy.compiler import pretuned, targets
from kerf.deploy.compiler.build import choose
from kerf.deploy.compiler.lower import lower
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import verify
from kerf.deploy.runtime import bundle, gpu
from kerf.deploy.runtime.session import load
from kerf.kernels.backends import CUDA
from kerf.kernels.cuda import compiler, conv2d_chwn_bsr_halo
from kerf.kernels.cuda.host import cuda_on_host
from kerf.kernels.cuda.host.emulate import emulate
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem
from kerf.tune.cli import main
from scripts.maintain import gpu_pretune
from tests.helpers.onnx_networks import mobile

HOPPER = targets.parse("cuda -arch=sm_90", 1)
compiles = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))


without_gpu = pytest.mark.skipif(gpu.architecture() is not None, reason="there is a GPU")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return mobile(tmp_path_factory.mktemp("gpu") / "mobile.onnx")


def calls(module) -> list[str]:
    """Names of the functions that main calls, in order."""
    bindings = [b.value for block in module["main"].body.blocks for b in block.bindings]
    return [v.args[0].name_hint.rstrip("0123456789_") for v in bindings if isinstance(v, relax.Call) and v.args]


@pytest.mark.parametrize("precision", ["f32", "tf32", "f16"])
def test_images_stay_in_rows_from_the_stem_to_the_pool(network, precision):
    found = convert(network, 4, 0.5, precision=precision)
    built = {n: replace(x, problem=replace(x.problem, n=0, nnzb=0)) for n, x in found.layers.items()}
    found = replace(found, layers=built)
    choices = {n: choose(x.problem, HOPPER, RecordBook(None), None) for n, x in found.layers.items()}
    module, packed = lower(found, choices, {}, HOPPER)
    names = calls(module)
    assert names.count("into_form") == 1
    assert names[0] == "into_form"
    assert names.count("from_form") == 1
    assert sum(name.startswith("conv2d_chwn") for name in names) == len(found.layers)
    kinds = {a.dtype for a in packed.values()}
    assert (np.dtype(np.float16) in kinds) == (precision == "f16")


def test_equal_sizes_are_not_taken_for_equal_images():
    """(8, 8) of 8 channels and 8 images of one pixel, in rows and as a matrix, are each other's transpose."""
    form = CUDA.form(HOPPER, "float32")
    assert not form.is_nchw
    assert [int(d) for d in form.type((8, 8, 1, 1)).shape] == [8, 8]


@pytest.mark.skipif(cuda_on_host.missing() is not None, reason=str(cuda_on_host.missing()))
@pytest.mark.parametrize(
    ("precision", "block", "images"),
    [
        ("f16", 16, 1),
        pytest.param("f16", 16, 8, marks=pytest.mark.slow),
        pytest.param("tf32", 16, 3, marks=pytest.mark.slow),
        pytest.param("f32", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_network_on_the_host_equals_onnx_runtime(tmp_path, precision, block, images):
    """Every function of the network as a GPU would run it, one after the other, on the CPU (cuda_on_host)."""
    path = mobile(tmp_path / "net.onnx", n=block, batch="n")
    found = convert(path, block, 0.3, batch=images, precision=precision)
    choices = {n: choose(x.problem, HOPPER, RecordBook(None), None) for n, x in found.layers.items()}
    assert any(c.problem.n for c in choices.values())
    module, packed = lower(found, choices, {}, HOPPER)

    verify(
        lambda x: emulate(module, packed, x, HOPPER, tmp_path),
        path,
        found.inputs,
        count=1,
        precision=precision,
    )


@compiles
def test_a_bundle_for_a_gpu_is_built_without_one(network, tmp_path, capsys):
    out = tmp_path / "net.kerf"
    flags = [f"--onnx_path={network}", "--bsr=4", "--target=cuda -arch=sm_90", "--precision=f32", f"--out={out}"]
    assert main([*flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = bundle.read_manifest(out)
    assert manifest["needs"]["cuda"] == "sm_90"
    assert manifest["precision"] == "f32"
    assert (out / bundle.MACHINE_CODE).read_bytes()[:4] == b"\x7fELF"
    assert any(row["kernel"] == "conv2d_chwn_bsr_simt" for row in manifest["layers"])
    if gpu.architecture() is None:
        assert told["verified"] is False
        assert "no NVIDIA GPU" in told["reason"]
        with pytest.raises(bundle.BundleError, match=r"built for a GPU sm_90, this machine has no NVIDIA GPU"):
            load(out)
    changed = tmp_path / "changed.kerf"
    shutil.copytree(out, changed)
    (changed / bundle.MACHINE_CODE).write_bytes(b"\x7fELF")
    with pytest.raises(bundle.BundleError, match="changed since it was built"):
        bundle.read_manifest(changed)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target=cuda -arch=sm_35"], "one of sm_80, sm_86, sm_89, sm_90"),
        (["--target=cuda -mcpu=x"], "expected cuda -arch="),
        pytest.param(["--target=cuda"], "has no NVIDIA GPU; name one", marks=without_gpu),
        (["--target=cuda -arch=sm_90", "--threads=2"], "neither --rpc nor --threads"),
        (["--precision=f16"], "CPU kernels compute in f32"),
    ],
)
def test_wrong_use_is_one_line(network, tmp_path, capsys, flags, words):
    out = tmp_path / "net.kerf"
    assert main([f"--onnx_path={network}", f"--out={out}", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not out.exists()


def test_code_is_known_by_its_source(monkeypatch):
    monkeypatch.setattr(gpu, "_compiled", {"there": b""})  # something is registered already
    gpu.provide(gpu.key("source"), b"code")
    assert gpu._answer("source") == b"code"
    monkeypatch.setattr(gpu, "_compiler", [])
    with pytest.raises(RuntimeError, match="without its machine code"):
        gpu._answer("another source")
    monkeypatch.setattr(gpu, "_compiler", [lambda source: source.encode()])
    assert gpu._answer("what is being built") == b"what is being built", "a process that loads may build, too"


def test_what_a_gpu_measured_is_taken_over_for_layers_alike(tmp_path, monkeypatch):
    shape = Problem(64, 64, 14, 14, 64, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    sparse = replace(shape, n=32, nnzb=32, **types_of("f16"))
    config = dict(conv2d_chwn_bsr_halo.configs(sparse, HOPPER)[3])
    group = {"group": shape.to_json(), "precision": "f16"}
    rows = [
        {**group, "kernel": conv2d_chwn_bsr_halo.name, "density": 0.25, "config": config, "us": 9.0},
        {**group, "kernel": "conv2d_chwn_dense_mma", "density": 1.0, "config": {"rows": 64}, "us": 20.0},
        {**group, "kernel": "cudnn", "density": 1.0, "config": {}, "us": 1.0},
    ]
    lines = gpu_pretune.lines({"layers": rows}, HOPPER, 32)
    assert len(lines) == 2
    monkeypatch.setattr(pretuned, "FOLDER", tmp_path)
    (tmp_path / "sm_90.jsonl").write_text("\n".join(lines) + "\n")
    pretuned._read.cache_clear()
    found = pretuned.known(replace(sparse, nnzb=40, residual=True, activation="none"), HOPPER)
    assert found.kernel == conv2d_chwn_bsr_halo.name
    assert found.config == config
    assert pretuned.known(replace(sparse, batch=8), HOPPER) is None
    pretuned._read.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "tf32", "f16"])
def test_network_on_the_gpu_equals_onnx_runtime(network, tmp_path, precision):
    out = tmp_path / "net.kerf"
    flags = [f"--onnx_path={network}", "--bsr=4", "--target=cuda", f"--precision={precision}", f"--out={out}"]
    assert main([*flags, "--trials=20", f"--records={tmp_path / 'records.jsonl'}", "--seconds=0.5"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["verified"]
    assert any(row["kerf_us"] for row in report["layers"]), "kernels were timed on the GPU"
    session = load(out)
    verify(session.run, network, convert(network).inputs, precision=precision)
