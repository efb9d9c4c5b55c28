"""kerf's pieces as custom operators of ONNX Runtime: from Python, from several threads, from C++."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import kerf
from kerf.deploy.embed import ort_model, toolchain
from kerf.errors import BadInput, Mismatch, Unsupported
from tests.helpers import random_onnx
from tests.helpers.onnx_networks import mobile
from tests.helpers.quantised_files import quantised

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")

ORT = glob(f"{Path(onnxruntime.__file__).parent}/capi/libonnxruntime.so.*")


def compiled(path: Path, **options) -> kerf.Bundle:
    return kerf.compile(path, trials=0, seconds=0.1, against=(), engine="kerf", format="ort", **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> kerf.Bundle:
    return compiled(mobile(tmp_path_factory.mktemp("ort") / "model.onnx"))


def test_onnx_runtime_computes_what_the_session_does(small):
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    (y,) = ort_model.opened(small.path).run(None, {"input": x})
    assert np.array_equal(y, small.run(x))
    assert [n.op_type for n in onnx.load(small.path / "model.onnx").graph.node] == ["Piece0"]


def test_pieces_of_both_engines_and_of_integers(tmp_path):
    onnx.save(random_onnx.network(5), tmp_path / "mixed.onnx")
    for path in (tmp_path / "mixed.onnx", quantised(mobile(tmp_path / "f32.onnx"), tmp_path / "int8.onnx")):
        bundle = compiled(path)
        session = ort_model.opened(bundle.path)
        x = {i.name: np.random.default_rng(0).standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
        found = bundle.run(x)
        found = list(found.values()) if isinstance(found, dict) else [found]
        for ours, theirs in zip(found, session.run(None, x), strict=True):
            assert np.allclose(ours, theirs, atol=1e-5)
    kinds = [n.op_type for n in onnx.load(tmp_path / "mixed.kerf/model.onnx").graph.node]
    assert {"Piece0", "Add"} < set(kinds)


def test_a_model_that_cannot_be_made_leaves_what_was_there(small, tmp_path, monkeypatch):
    path = shutil.copy(small.path.parent / "model.onnx", tmp_path)
    before = compiled(Path(path), out=tmp_path / "before.kerf")

    def refused(*_):
        raise Unsupported("no piece of it is kerf's")

    kept = {p.name: p.read_bytes() for p in before.path.iterdir()}
    monkeypatch.setattr(ort_model, "write", refused)
    for out in (before.path, tmp_path / "new.kerf"):
        with pytest.raises(Unsupported, match="no piece of it is kerf's"):
            compiled(Path(path), out=out)
    assert {p.name: p.read_bytes() for p in before.path.iterdir()} == kept
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "before.kerf"}


def test_calls_from_several_threads_at_once(small):
    session, rng = ort_model.opened(small.path), np.random.default_rng(0)
    images = [rng.standard_normal((1, 3, 32, 32)).astype(np.float32) for _ in range(40)]
    alone = [session.run(None, {"input": x})[0] for x in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: session.run(None, {"input": x})[0], images))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


PROGRAM = r"""
// ONNX Runtime's C API by the places of its entries, as libkerf has them.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef void (*entry)();
struct base { const entry *(*api)(uint32_t); };
static const entry *t;
template <class... A> void call(int i, A... a) {
  void *status = reinterpret_cast<void *(*)(A...)>(t[i])(a...);
  if (!status) return;
  fprintf(stderr, "%s\n", reinterpret_cast<const char *(*)(void *)>(t[2])(status));
  exit(1);
}
int main(int, char **words) {
  void *library = dlopen(words[1], RTLD_NOW), *env, *options, *handle, *session, *memory, *x, *y = nullptr, *data;
  t = reinterpret_cast<base *(*)()>(dlsym(library, "OrtGetApiBase"))()->api(16);
  static float numbers[3 * 32 * 32];
  if (fread(numbers, sizeof numbers, 1, stdin) != 1) return 2;
  const int64_t shape[] = {1, 3, 32, 32};
  const char *inputs[] = {words[4]}, *outputs[] = {words[5]};
  call(3, 3, (const char *)"test", &env);
  call(10, &options);
  call(29, options, (const char *)words[3], &handle);
  call(7, env, (const char *)words[2], options, &session);
  call(69, 0, 0, &memory);
  call(49, memory, (void *)numbers, sizeof numbers, shape, (size_t)4, 1, &x);
  call(9, session, (void *)nullptr, inputs, &x, (size_t)1, outputs, (size_t)1, &y);
  call(51, y, &data);
  fwrite(data, sizeof(float), 10, stdout);
}
"""


def test_a_program_in_cpp_registers_the_library_and_runs_the_model(small, tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    subprocess.run(["c++", "-std=c++14", tmp_path / "main.cpp", "-o", tmp_path / "a", "-ldl"], check=True)
    x = np.random.default_rng(2).standard_normal((1, 3, 32, 32)).astype(np.float32)
    (output,) = small.manifest["outputs"]
    command = [tmp_path / "a", ORT[0], small.path / "model.onnx", small.path / "libkerf_ops.so", "input", output]
    done = subprocess.run(command, input=x.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == small.run(x).tobytes()


def test_a_model_does_not_run_with_another_bundles_pieces(small, tmp_path):
    other = compiled(mobile(tmp_path / "other.onnx", zero_blocks=0.75))
    shutil.copy(small.path / "model.onnx", other.path / "model.onnx")
    with pytest.raises(Unsupported, match="ONNX Runtime refuses it"):
        ort_model.opened(other.path)


def test_a_changed_bundle_is_refused_with_libkerfs_own_line(small, tmp_path):
    copy = tmp_path / "copy.kerf"
    shutil.copytree(small.path, copy)
    (copy / "weights.npz").write_bytes(b"")
    with pytest.raises(Unsupported, match="changed since it was built"):
        ort_model.opened(copy)


def test_outputs_that_differ_leave_no_files(small, tmp_path, monkeypatch):
    copy, tools = tmp_path / "copy.kerf", toolchain.toolchain()
    shutil.copytree(small.path, copy)
    other = mobile(tmp_path / "other.onnx", zero_blocks=0.9)
    from kerf.deploy.frontend.convert import convert

    with pytest.raises(Mismatch):
        ort_model.proven(copy, tools, other, convert(other).inputs, "f32", 1)
    assert not (copy / "model.onnx").exists()
    assert not (copy / "libkerf_ops.so").exists()


def test_what_cannot_be_is_said_before_anything_is_built(tmp_path, monkeypatch):
    path = mobile(tmp_path / "m.onnx", batch="batch")
    with pytest.raises(BadInput, match="several --shape"):
        compiled(path, shapes=[{"input": (1, 3, 32, 32)}, {"input": (2, 3, 32, 32)}])
    with pytest.raises(BadInput, match="a CPU like this machine's"):
        compiled(path, target="llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BadInput, match="no C compiler"):
        compiled(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
