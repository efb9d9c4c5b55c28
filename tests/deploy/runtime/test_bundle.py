"""Build, verify, save, load: a network runs from its bundle or is refused with a reason."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import tvm
from tvm import relax

from kerf.deploy.compiler import pairs, targets
from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import Plan, build, compiled
from kerf.deploy.compiler.choice import Choice
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import relative_error, verify
from kerf.deploy.plans import steps
from kerf.deploy.runtime import bundle
from kerf.deploy.runtime.session import load
from kerf.errors import Mismatch
from kerf.kernels.backends import CPU
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.kernel import candidates
from tests.helpers.onnx_networks import Builder, mobile

TARGET = targets.parse("native", 1)


def contents(network, built, **changes):
    made = steps.steps(network, built)
    manifest = {
        "inputs": steps.ends(network.inputs),
        "outputs": steps.ends(network.outputs),
        "plans": made.entries,
        "fallback": None,
        "engine": "kerf",
        "target": targets.describe(built.target),
        "needs": targets.needs(built.target),
        "threads": int(built.target.attrs["num-cores"]),
        "tvm": version("apache-tvm"),
    }
    return {**manifest, **changes}, {"library.so": built.export}, made.weights, made.models, ""


def save(path, built, network):
    with bundle.replacing(path) as folder:
        bundle.write(folder, *contents(network, built))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    network = convert(mobile(folder / "m.onnx"))
    built = build(network, TARGET, RecordBook())
    return network, built, save(folder / "m.kerf", built, network)


def test_bundle_equals_onnxruntime(small):
    network, _, folder = small
    session = load(folder)
    result = verify(session.run, network.path, network.inputs)
    assert result["verified"] is True
    assert 0 < result["max_relative_error"] < 1e-5


def test_every_kernel_and_the_dense_twins_compute_the_same_network(small):
    network = small[0]
    for depth in range(4):
        choices = {}
        for name, layer in network.layers.items():
            taker = list(candidates(CPU.kernels, layer.problem, TARGET))
            taker = taker[depth % len(taker)]
            configs = taker.kernel.configs(taker.problem, TARGET)
            choices[name] = Choice(taker.problem, taker.kernel.name, configs[depth % len(configs)])
        built = compiled(network, TARGET, Plan(choices, {}))
        session = steps.session(network, built, 1)
        verify(session.run, network.path, network.inputs)


@pytest.mark.parametrize("threads", [1, 2])
def test_pairs_compute_the_same_network(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(pairs, "machine_of", lambda target: replace(machine_of(target), l2=0))
    network = convert(mobile(tmp_path / "m.onnx", batch="n"), batch=2)
    built = build(network, targets.parse("native", threads), RecordBook())
    assert built.pairs
    names = built.executable.as_text()
    assert "conv2d_nchw_bsr_direct_depthwise" in names
    session = steps.session(network, built, threads)
    verify(session.run, network.path, network.inputs)


def test_what_was_timed_here_is_loaded_in_silence(tmp_path):
    """TVM notes a memory scope for each constant of what has run, and warns of each when it is loaded from a file."""
    b = Builder()
    x = b.node("Sigmoid", [b.conv("input", "first", 8, 3, 3)], "gate")
    x = b.node("Add", [x, b.constant("rows", np.arange(32).reshape(1, 1, 32, 1))], "sum")
    network = convert(b.save(tmp_path / "m.onnx", x, out_shape=(1, 8, 32, 32)))
    built = build(network, TARGET, RecordBook())
    steps.session(network, built, 1)
    built.export(tmp_path / "library.so")
    code = "import sys; from kerf.deploy.runtime import session; import tvm_ffi; session.load_runtime(); "
    code += "tvm_ffi.load_module(sys.argv[1])"
    words = [sys.executable, "-c", code, str(tmp_path / "library.so")]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stderr == ""


def test_from_stem_to_pool_nothing_is_moved(small):
    """Planes of 32x32 and 16x16 pixels fill cache lines: neither layout changes nor reshapes may be left in between."""
    calls = [line.split()[1] for line in small[1].executable.as_text().splitlines() if line.startswith("  call")]
    layers = [i for i, name in enumerate(calls) if name.startswith("conv2d")]
    between = set(calls[layers[0] : layers[-1]])
    assert not {name for name in between if "planes" in name}


def test_a_call_checks_the_image_and_makes_its_result_alone(small):
    _, run = small[1].executable.as_text().split("@run")
    run = run.partition("\n@")[0]
    assert run.count("call  vm.builtin.check_tensor_info") == 1
    assert run.count("call  vm.builtin.alloc_tensor") == run.count("call  vm.builtin.alloc_storage") == 1
    assert len(small[1].packed[0]) > 10


def test_results_stay_as_they_were_when_the_next_are_made(small):
    _network, built, folder = small
    sessions = [load(folder) for _ in range(2)]  # each with memory of its own
    images = np.random.default_rng(0).standard_normal((4, *sessions[0].input_shape)).astype(np.float32)
    results = [sessions[i % 2].run(x) for i, x in enumerate(images)]
    whole = relax.VirtualMachine(built.executable, tvm.cpu())  # "main" makes every tensor anew
    weights = [tvm.runtime.tensor(w) for w in built.packed[0].values()]
    for x, y in zip(images, results):
        np.testing.assert_array_equal(y, whole["main"](tvm.runtime.tensor(x), *weights).numpy())


def test_batch_and_threads(tmp_path):
    network = convert(mobile(tmp_path / "m.onnx", batch="n"), batch=3)
    built = build(network, targets.parse("native", 2), RecordBook())
    session = steps.session(network, built, 2)
    verify(session.run, network.path, network.inputs)


def test_a_wrong_layer_is_named(small, tmp_path):
    network, built, _ = small
    packed = dict(built.packed[0])
    packed["project.data"] = packed["project.data"] * 1.5
    session = steps.session(network, replace(built, packed=(packed,)), 1)
    with pytest.raises(Mismatch, match="differs from ONNX Runtime"):
        verify(session.run, network.path, network.inputs)
    assert blame(network, built) == []
    broken = replace(network.layers["project"], bias=network.layers["project"].bias + 1)
    (line,) = blame(replace(network, layers={**network.layers, "project": broken}), built)
    assert line.startswith("project (32x16x16->16 1x1, conv2d_nchw_bsr_direct): error")


def test_running_leaves_the_callers_cores_alone(small):
    code = f"""
import os, numpy as np
import kerf
before = os.sched_getaffinity(0)
kerf.load({str(small[2])!r}, threads=1).run(np.ones((1, 3, 32, 32), np.float32))
assert os.sched_getaffinity(0) == before, os.sched_getaffinity(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nan_is_never_verified():
    good, nan = np.zeros((1, 3), np.float32), np.full((1, 3), np.nan, np.float32)
    for y, truth in ((nan, good), (good, nan), (nan, nan), (good, good[:, :2])):
        assert not relative_error(y, truth) < 1
    assert relative_error(good, good) == 0


def test_outputs_that_are_nothing_are_equal_and_others_are_not():
    nothing, one = np.array([0, 1e-8], np.float32), np.array([0, 1], np.float32)
    assert relative_error(nothing, 0 * nothing) == 0
    assert relative_error(one, nothing) > 1
    assert relative_error(nothing, one) == pytest.approx(1)
    assert relative_error(np.array([3e-6]), np.array([2e-6])) == pytest.approx(0.5)


def test_a_session_keeps_its_threads_beside_others_and_in_other_threads(small, tmp_path):
    network = small[0]
    folder = save(tmp_path / "two.kerf", build(network, targets.parse("native", 2), RecordBook()), network)
    one, two = load(folder, threads=1), load(folder, threads=2)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    results = [one.run(x), two.run(x), one.run(x)]
    with ThreadPoolExecutor(1) as pool:
        results.append(pool.submit(one.run, x).result())
    for y in results:
        np.testing.assert_allclose(y, results[0], rtol=1e-5, atol=1e-6)


def test_sessions_of_a_bundle_share_its_library_and_those_of_a_new_one_in_its_place_do_not(small, tmp_path):
    network, x = small[0], np.ones((1, 3, 32, 32), np.float32)
    folder = save(tmp_path / "b.kerf", build(network, TARGET, RecordBook()), network)
    first = load(folder)
    assert first._libraries == load(folder)._libraries
    shutil.rmtree(folder)
    b = Builder()
    other = convert(b.save(tmp_path / "other.onnx", b.conv("input", "alone", 8, 3), (1, 3, 32, 32), (1, 8, 32, 32)))
    save(folder, build(other, TARGET, RecordBook()), other)
    assert load(folder).run(x).shape != first.run(x).shape


def test_code_for_one_thread_is_not_spread_over_two(small):
    with pytest.raises(bundle.BundleError, match="built for one thread, which 2 cannot share"):
        load(small[2], threads=2)


def test_input_of_other_shape_or_type_is_refused(small):
    session = load(small[2])
    with pytest.raises(ValueError, match=r"input is float32 \(1, 3, 8, 8\); this bundle takes"):
        session.run(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="float64"):
        session.run(np.zeros((1, 3, 32, 32)))
    with pytest.raises(ValueError, match="input is int"):
        session.run([1])


def test_read_only_unaligned_and_strided_inputs_give_the_same_result(small):
    session = load(small[2])
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    y = session.run(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    shifted = np.zeros(x.size + 1, np.float32)[1:].reshape(x.shape)
    shifted[:] = x
    strided = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for other in (frozen, shifted, strided):
        np.testing.assert_array_equal(session.run(other), y)


@pytest.mark.parametrize("name", ["library.so", *bundle.HASHED])
def test_a_changed_byte_is_refused(small, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(small[2], folder)
    content = bytearray((folder / name).read_bytes() or b"x")
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(bundle.BundleError, match=f"{name}: changed since it was built"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tvm": "0.1"}, "built with TVM 0.1"),
        ({"needs": {"machine": "riscv64", "features": []}}, "built for riscv64"),
        ({"needs": {**targets.needs(TARGET), "features": ["avx10_9"]}}, "needs avx10_9, which this CPU lacks"),
        ({"format": 99}, "format 99"),
    ],
)
def test_a_bundle_for_another_machine_is_refused(small, tmp_path, change, reason):
    network, built, _ = small
    bundle.write(tmp_path, *contents(network, built, **change))
    with pytest.raises(bundle.BundleError, match=reason):
        load(tmp_path)


def test_a_changed_manifest_is_refused(small, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(small[2], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for change in ({"threads": 7}, {"inputs": {}}, {"sha256": {}}, {"manifest_sha256": ""}):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(bundle.BundleError, match=r"manifest\.json: changed since it was built"):
            load(folder)
    for text in ("[]", "{", ""):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(bundle.BundleError, match="a bundle's manifest"):
            load(folder)


def test_failing_while_it_is_replaced_keeps_the_old_bundle(small, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(small[2], folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def interrupted():
        with bundle.replacing(folder) as new:
            (new / "library.so").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_is_no_bundle_is_not_overwritten(small, tmp_path):
    network, built, _ = small
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    (tmp_path / "precious" / "manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(bundle.BundleError, match="exists and is no bundle"):
        save(tmp_path / "precious", built, network)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(FileNotFoundError, match="no bundle"):
        load(tmp_path)


def test_the_runtime_does_without_tvms_compiler(small):
    code = f"""
import sys, numpy as np
import kerf
from deploy import runtime
assert runtime.load is kerf.load, "as programs in a checkout had it"
y = kerf.load({str(small[2])!r}).run(np.ones((1, 3, 32, 32), np.float32))
assert y.shape == (1, 10) and np.isfinite(y).all()
assert not {{'tvm', 'onnx', 'onnxruntime'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_deployment_imports_and_runs_without_torch(small):
    """A bundle is built and run in a process where importing torch fails."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'sklearn', 'safetensors', 'onnxscript', 'PIL', 'compress'):
            raise ImportError('no ' + name)
sys.meta_path.insert(0, Refuse())
import numpy as np
import kerf.tune.cli, kerf.deploy.cli
import kerf
y = kerf.load({str(small[2])!r}).run(np.ones((1, 3, 32, 32), np.float32))
assert y.shape == (1, 10) and 'torch' not in sys.modules
assert kerf.tune.cli.main(['--onnx_path', {str(small[0].path)!r}, '--trials', '0', '--seconds', '0.2',
    '--against', 'onnxruntime', '--out', {str(small[2].parent / "again.kerf")!r}]) == 0
assert 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
