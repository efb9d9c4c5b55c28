"""libkerf from an exported folder: built by the machine's C compiler, run where there is no Python, equal to Python."""

import os
import shutil
import struct
import subprocess
import sys
from glob import glob
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import kerf
from kerf.deploy.cli import main
from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build
from kerf.deploy.embed import c_library, toolchain
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.plans import pieces, steps
from kerf.deploy.runtime import bundle, program_file
from kerf.errors import BadInput
from tests.helpers import random_onnx
from tests.helpers.onnx_networks import Builder, mobile
from tests.helpers.quantised_files import joined, quantised, residual

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")

ROOT = Path(__file__).parents[3]
ORT = glob(f"{Path(onnxruntime.__file__).parent}/capi/libonnxruntime.so.*")
STRICT = "cc -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Werror"


def drawn(seed: int):
    def make(path: Path) -> Path:
        onnx.save(random_onnx.network(seed), path)
        return path

    return make


# the last two have pieces of ONNX Runtime's, and one has two outputs
NETWORKS = {"mobile": mobile, "residual": residual, "joined": joined, "several": drawn(0), "pieces": drawn(5)}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return c_library.export(tmp_path_factory.mktemp("c") / "runtime", STRICT).folder


def example(library: Path, *words, code: int = 0, **env: str) -> str:
    """What the example says, without Python, or anything else, in PATH."""
    empty = library.parent / "empty"
    empty.mkdir(exist_ok=True)
    command = [library / "bin" / "kerf-example", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=empty, env={"PATH": str(empty), **env})
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def built(folder: Path, make, **options) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(bundle, inputs, what Python's session makes of them)."""
    path = make(folder / "model.onnx")
    bundle = kerf.compile(path, trials=0, seconds=0.1, against=(), engine="kerf", **options)
    session, rng = bundle.session(), np.random.default_rng(1)
    x = {n: rng.standard_normal(t["shape"]).astype(t["dtype"]) for n, t in session.inputs.items()}
    y = session.run(x)
    return bundle.path, x, y if isinstance(y, dict) else {next(iter(session.outputs)): y}


def saved(folder: Path, x: dict[str, np.ndarray]) -> list[Path]:
    for name, array in x.items():
        np.save(folder / f"{name}.npy", array)
    return [folder / f"{name}.npy" for name in x]


SOME = ("mobile f32", "mobile int8", "residual int8", "several f32", "pieces f32")
ALL = [f"{name} {numbers}" for name in NETWORKS for numbers in ("f32", "int8")]


@pytest.mark.parametrize("which", [w if w in SOME else pytest.param(w, marks=pytest.mark.slow) for w in ALL])
def test_c_computes_what_python_does_bit_for_bit_on_one_thread_and_two(library, tmp_path, which):
    name, numbers = which.split()

    def make(path: Path) -> Path:
        made = NETWORKS[name](tmp_path / "f32.onnx")
        return made.rename(path) if numbers == "f32" else quantised(made, path)

    bundle, x, y = built(tmp_path, make, threads=2)
    for threads in ("1", "2"):
        out, env = tmp_path / f"{threads}.bin", {"KERF_ONNXRUNTIME": ORT[0]}
        example(library, bundle, *saved(tmp_path, x), "--out", out, "--threads", threads, "--runs", "3", **env)
        assert out.read_bytes() == b"".join(array.tobytes() for array in y.values())


def test_the_example_prints_the_five_largest_and_takes_bare_numbers(library, tmp_path):
    bundle, x, y = built(tmp_path, mobile)
    (tmp_path / "x.raw").write_bytes(x["input"].tobytes())
    lines = example(library, bundle, tmp_path / "x.raw").splitlines()
    (first,) = y.values()
    assert [int(line.split()[0]) for line in lines] == list(np.argsort(-first[0])[:5])
    assert [float(line.split()[1]) for line in lines] == pytest.approx(np.sort(first[0])[::-1][:5], rel=1e-5)


def test_what_is_wrong_is_said_in_a_line(library, tmp_path):
    bundle, x, _ = built(tmp_path, mobile)
    (file,) = saved(tmp_path, x)

    def said(*words, **env):
        text = example(library, *words, code=2, **env)
        assert text.count("\n") == 1
        return text

    assert "no bundle" in said(tmp_path / "none", file)
    assert "built for one thread, which 2 cannot share" in said(bundle, file, "--threads", "2")
    (tmp_path / "short.raw").write_bytes(b"12")
    assert "another number of bytes" in said(bundle, tmp_path / "short.raw")
    for name in ("weights.npz", "library.so", "program.bin"):
        copy = tmp_path / f"changed-{name}"
        shutil.copytree(bundle, copy)
        contents = bytearray((copy / name).read_bytes())
        contents[len(contents) // 2] ^= 1
        (copy / name).write_bytes(contents)
        assert "changed since it was built" in said(copy, file)
        (copy / name).unlink()
        assert "no such file" in said(copy, file).lower() or name == "program.bin"


def rewritten(bundle: Path, old: bytes, new: bytes) -> None:
    """program.bin with other words in it, whole again."""
    import hashlib

    body = (bundle / program_file.FILE).read_bytes()[:-32]
    assert old in body
    body = body.replace(old, new)
    (bundle / program_file.FILE).write_bytes(body + hashlib.sha256(body).digest())


BESIDE = """
import ctypes, sys
import numpy as np, kerf
lib, bundle, ours_first = ctypes.CDLL(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
x, y = np.load(sys.argv[4]), np.zeros(10, np.float32)
model, session, void = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p
python = None if ours_first else kerf.load(bundle)
assert not lib.kerf_open(bundle.encode(), None, ctypes.byref(model))
assert not lib.kerf_start(model, 2, None, ctypes.byref(session))
python = python or kerf.load(bundle)
for _ in range(3):
    assert not lib.kerf_run(session, (void * 1)(x.ctypes.data), (void * 1)(y.ctypes.data))
    assert np.array_equal(python.run(x)[0], y), (python.run(x), y)
"""


@pytest.mark.parametrize("ours_first", ["0", "1"])
def test_python_and_c_run_one_bundle_in_one_process(library, tmp_path, ours_first):
    """They share its library, and with it the pointers to the runtime that it calls."""
    bundle, x, _ = built(tmp_path, mobile, threads=2)
    words = [sys.executable, "-c", BESIDE, library / "lib/libkerf.so", bundle, ours_first, *saved(tmp_path, x)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_a_cpu_without_the_instructions_is_refused(library, tmp_path):
    bundle, x, _ = built(tmp_path, mobile)
    (file,) = saved(tmp_path, x)

    def text(word: bytes) -> bytes:
        return struct.pack("<I", len(word)) + word

    rewritten(bundle, text(b"avx2"), text(b"avx9"))
    assert "needs avx9, which this CPU lacks" in example(library, bundle, file, code=2)
    rewritten(bundle, text(b"x86_64"), text(b"mips64"))
    assert "built for mips64" in example(library, bundle, file, code=2)


def test_what_only_tvm_can_run_is_refused_by_name(library, tmp_path):
    """A network that TVM compiles as a whole may sort, which its runtime does."""
    b = Builder()
    x = b.conv("input", "stem", 8, 3, 3)
    x = b.node("Flatten", [x], "flat")
    b.nodes.append(onnx.helper.make_node("TopK", [x, b.integers("k", [5])], ["top", "at"], name="top"))
    path = b.save(tmp_path / "model.onnx", "top", shape=(1, 3, 8, 8), out_shape=(1, 5))
    network, folder = pieces.whole(convert(path)), tmp_path / "whole.kerf"
    made = build(network, targets.parse("native", 1), RecordBook())
    parts = steps.steps(network, made)
    ends = {"inputs": steps.ends(network.inputs), "outputs": steps.ends(network.outputs)}
    about = {"plans": parts.entries, "fallback": None, "target": "native", "needs": targets.needs(made.target)}
    folder.mkdir()
    contents = {**ends, **about, "threads": 1, "tvm": "any"}
    bundle.write(folder, contents, {"library.so": made.export}, parts.weights, {}, "", programs=[made.programs])
    (tmp_path / "x").write_bytes(bytes(4 * 3 * 8 * 8))
    assert "calls functions of TVM's runtime" in example(library, folder, tmp_path / "x", code=2)


def test_a_piece_of_onnx_runtime_without_it_is_one_line(library, tmp_path):
    bundle, x, _ = built(tmp_path, drawn(5))
    env = {"KERF_ONNXRUNTIME": str(tmp_path / "libnone.so")}
    assert "which is not there" in example(library, bundle, *saved(tmp_path, x), code=2, **env)


def test_sizes_that_no_plan_is_for_run_in_onnx_runtime(library, tmp_path):
    path = mobile(tmp_path / "model.onnx", batch="batch")
    bundle = kerf.compile(path, trials=0, seconds=0.1, against=(), engine="kerf", batch=2)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    source = r"""
#include <stdio.h>
#include <kerf.hpp>
int main(int, char **words) {
  try {
    kerf::Model model(words[1], words[2]);
    const int64_t sizes[] = {3, 3, 32, 32}, *shapes[] = {sizes};
    kerf::Session session(model, 0, shapes), usual(model);
    static float x[3 * 3 * 32 * 32];
    if (fread(x, sizeof x, 1, stdin) != 1 || usual.input(0).shape[0] != 2) return 3;
    session.run({x}, {nullptr});
    kerf_tensor is;
    const void *y = session.result(0, &is);
    fwrite(y, 1, kerf_bytes(is), stdout);
    std::vector<float> own(kerf_bytes(usual.output(0)) / sizeof(float));
    usual.run({x}, {own.data()});
    fwrite(own.data(), sizeof(float), own.size(), stdout);
    kerf::Session(model, 7);
  } catch (const kerf::Error &error) {
    fprintf(stderr, "%d %s", error.status, error.what());
  }
}
"""
    (tmp_path / "main.cpp").write_text(source)
    flags = [f"-I{library / 'include'}", f"-L{library / 'lib'}", "-lkerf", f"-Wl,-rpath,{library / 'lib'}"]
    words = [
        "c++",
        "-std=c++14",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(tmp_path / "main.cpp"),
        "-o",
        str(tmp_path / "a"),
        *flags,
    ]
    subprocess.run(words, check=True)
    done = subprocess.run([tmp_path / "a", bundle.path, ORT[0]], input=x.tobytes(), capture_output=True)
    y = np.frombuffer(done.stdout, np.float32)
    with pytest.warns(UserWarning, match="nothing was compiled"):
        assert np.allclose(y[:30], bundle.run(x).ravel(), atol=1e-6)
    assert np.array_equal(y[30:], bundle.run(x[:2]).ravel())
    assert (
        done.stderr.decode()
        == f"1 {bundle.path}: built for one thread, which 7 cannot share; build it again with --threads 7"
    )


@pytest.mark.skipif(not shutil.which("cmake"), reason="no CMake")
def test_cmake_and_pkg_config_find_it(library, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(a C)\nfind_package(kerf 0.1 REQUIRED)\n"
        f"add_executable(a {library}/example/main.c)\ntarget_link_libraries(a kerf::kerf)\n"
    )
    build = tmp_path / "build"
    subprocess.run(
        ["cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={library}"], check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    assert "cannot open" in subprocess.run([build / "a", "none", "x"], capture_output=True, text=True).stderr
    if shutil.which("pkg-config"):
        env = {**os.environ, "PKG_CONFIG_PATH": str(library / "lib/pkgconfig")}
        said = subprocess.run(["pkg-config", "--libs", "kerf"], env=env, capture_output=True, text=True, check=True)
        assert "-lkerf" in said.stdout


def test_the_header_has_the_version(library):
    assert f'#define KERF_VERSION "{kerf.__version__}"' in (library / "include/kerf.h").read_text()


def test_the_library_is_small_and_needs_the_system_alone(library):
    assert (library / "lib/libkerf.so").stat().st_size < 6 << 20
    needed = subprocess.run(["ldd", library / "lib/libkerf.so"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0].partition(".")[0] for line in needed.splitlines()} <= {
        *("linux-vdso", "libc", "libdl", "libpthread"),
        "/lib64/ld-linux-x86-64",
    }


def test_without_a_compiler_it_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert main(["export-runtime", str(tmp_path / "out")]) == 2
    assert "no C compiler found" in capsys.readouterr().err
    assert main(["export-runtime", str(tmp_path / "out"), "--cc", "no-such-cc"]) == 2
    assert "no-such-cc: no such C compiler" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_else_stays(tmp_path):
    (tmp_path / "mine").write_text("text")
    with pytest.raises(BadInput, match="holds something else"):
        c_library.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("platform", "suffix"), [("linux", ".so"), ("darwin", ".dylib")])
def test_libraries_are_named_and_linked_as_the_platform_does(platform, suffix, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    tools, called = toolchain.toolchain("cc"), []
    monkeypatch.setattr(toolchain.Toolchain, "call", lambda self, *words: called.append(words))
    assert tools.suffix == suffix
    tools.link([Path("a.o")], Path(f"libkerf{suffix}"))
    assert ("-dynamiclib" in called[0]) == (platform == "darwin")
    assert ("-Wl,-install_name,@rpath/libkerf.dylib" in called[0]) == (platform == "darwin")


def test_windows_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(BadInput, match="on Windows bundles run through Python"):
        toolchain.toolchain()


def test_a_compiler_of_blanks_is_none(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(BadInput, match="no C compiler found"):
        toolchain.toolchain(" ")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="no C compiler found"):
        toolchain.toolchain()


def tiny(path: Path) -> Path:
    """Stem, depthwise, a sparse 1×1 and a sparse 3×3 layer, mean and classifier on 8×8 pixels."""
    b = Builder()
    x = b.node("Relu", [b.conv("input", "stem", 8, 3, 3, strides=[2, 2])], "stem.relu")
    x = b.node("Relu", [b.conv(x, "depthwise", 8, 1, 3, group=8)], "depthwise.relu")
    x = b.node("Relu", [b.conv(x, "point", 8, 8, zero_blocks=0.5)], "point.relu")
    x = b.conv(x, "spatial", 8, 8, 3, zero_blocks=0.5)
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "gap")], "flat")
    x = b.node(
        "Gemm", [x, b.constant("w", b.rng.standard_normal((5, 8))), b.constant("b", np.zeros(5))], "fc", transB=1
    )
    return b.save(path, x, shape=(1, 3, 8, 8), out_shape=(1, 5))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind")
@pytest.mark.parametrize("numbers", ["f32", "int8"])
def test_ten_thousand_runs_leak_nothing_read_nothing_invalid_and_allocate_nothing(library, tmp_path, numbers):
    """Valgrind knows AVX2 but not AVX-512."""

    def make(path: Path) -> Path:
        made = tiny(tmp_path / "f32.onnx")
        return made.rename(path) if numbers == "f32" else quantised(made, path)

    bundle, x, y = built(tmp_path, make, target="x86-64-v3", threads=2)
    allocations = set()
    for runs, threads in (("200", "2"), ("10000", "1"), ("200", "1"), ("400", "2")):
        command = [
            "valgrind",
            "--leak-check=full",
            "--show-leak-kinds=all",
            "--error-exitcode=9",
            "--errors-for-leak-kinds=all",
        ]
        words = [library / "bin/kerf-example", bundle, *saved(tmp_path, x), "--threads", threads, "--runs", runs]
        done = subprocess.run([*command, *words, "--out", tmp_path / "out"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        allocations.add((threads, done.stderr.partition("total heap usage: ")[2].partition(" allocs")[0]))
        assert (tmp_path / "out").read_bytes() == next(iter(y.values())).tobytes()
    assert len(allocations) == 2  # the example sorts times in room that it takes: as many for 200 runs as for thousands
