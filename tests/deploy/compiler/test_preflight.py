"""What a machine lacks is found before any work is done. Nothing here rests on permissions, which root ignores."""

import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kerf.deploy.compiler import preflight
from kerf.deploy.embed import toolchain
from kerf.errors import BadInput
from kerf.tune.cli import main
from tests.helpers.onnx_networks import mobile

ROOT = Path(__file__).parents[3]


@pytest.fixture
def temporary(monkeypatch):
    """Lets Python choose its folder for temporary files anew, in the test and after it."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    return monkeypatch


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_pin_is_the_packages():
    assert f'"apache-tvm=={preflight.TVM}"' in (ROOT / "pyproject.toml").read_text()


def test_another_version_of_tvm_or_none_is_named(monkeypatch):
    preflight.refuse_tvm()
    monkeypatch.setattr(preflight, "version", lambda _: "0.20.0")
    with pytest.raises(ImportError, match=r"0\.20\.0 is installed, and kerf needs"):
        preflight.refuse_tvm()

    def absent(name):
        raise preflight.PackageNotFoundError(name)

    monkeypatch.setattr(preflight, "version", absent)
    with pytest.raises(ImportError, match="apache-tvm is not installed; pip install apache-tvm=="):
        preflight.refuse_tvm()


def test_more_threads_than_cpus_are_refused(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    monkeypatch.setattr(preflight, "quota", lambda: None)
    preflight.refuse_threads(3)
    with pytest.raises(BadInput, match="--threads 4: this process may run on 3 CPUs"):
        preflight.refuse_threads(4)
    monkeypatch.setattr(preflight, "quota", lambda: 1.5)
    preflight.refuse_threads(2)
    with pytest.raises(BadInput, match="control group allows 2 CPUs"):
        preflight.refuse_threads(3)


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/pod/box\n", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 100000"}, 2.0),  # the group above
        ("4:cpu,cpuacct:/box\n", {"cpu,cpuacct/box/cpu.cfs_quota_us": "50000"}, 0.5),  # version 1
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1"}, None),
        ("4:memory:/\n", {"memory/cpu.cfs_quota_us": "50000"}, None),
    ],
)
def test_the_quota_of_a_control_group(tmp_path, own, files, cpus):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if "quota" in name:
            path.with_name("cpu.cfs_period_us").write_text("100000")
    assert preflight.quota(tmp_path / "groups", tmp_path / "own") == cpus
    assert preflight.quota(tmp_path / "groups", tmp_path / "absent") is None


def test_a_place_for_the_bundle(tmp_path, monkeypatch):
    preflight.refuse_out(tmp_path / "a" / "b" / "x.kerf")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        BadInput, match=r"file/x.kerf: nothing can be written in .*file \(Not a directory\); give --out"
    ):
        preflight.refuse_out(tmp_path / "file" / "x.kerf")
    with pytest.raises(BadInput, match=r"MB are free there, .* MB are needed"):
        preflight.refuse_out(tmp_path / "x.kerf", room=1 << 60)

    def forbidden(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", forbidden)
    with pytest.raises(BadInput, match="forbids execution"):
        preflight.refuse_out(tmp_path / "x.kerf")
    preflight.refuse_out(tmp_path / "x.kerf", loaded=False)  # for another machine
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "said"),
    [("noexec", "forbids execution"), ("ro", "Read-only file system"), ("size=4k", "MB are free")],
)
def test_real_file_systems(tmp_path, options, said):
    """In a namespace of its own, so that nothing is left mounted whatever happens."""
    code = f"from kerf.deploy.compiler import preflight as p; p.refuse_out(p.Path({str(tmp_path)!r}, 'x'))"
    words = f"mount -t tmpfs -o {options} tmpfs {tmp_path} && exec {sys.executable} -c {code!r}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    done = subprocess.run(["unshare", "--mount", "sh", "-c", words], capture_output=True, text=True, cwd=ROOT)
    assert said in done.stderr.splitlines()[-1]


def test_records_must_take_more(tmp_path):
    (tmp_path / "r.jsonl").write_text("kept\n")
    preflight.refuse_records(tmp_path / "r.jsonl")
    preflight.refuse_records(tmp_path / "new" / "r.jsonl")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.jsonl", "kept\n")]
    with pytest.raises(BadInput, match="a folder; expected a file of records"):
        preflight.refuse_records(tmp_path)
    with pytest.raises(BadInput, match="Not a directory"):
        preflight.refuse_records(tmp_path / "r.jsonl" / "r")


def test_temporary_files_go_where_they_can(tmp_path, temporary):
    temporary.setenv("TMPDIR", str(tmp_path))
    preflight.refuse_temporary()
    temporary.setattr(tempfile, "tempdir", None)
    temporary.setenv("TMPDIR", str(tmp_path / "absent"))
    with pytest.warns(UserWarning, match="absent: cannot be written; temporary files go to"):
        preflight.refuse_temporary()


def test_the_compiler_is_tried(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    preflight.refuse_compiler()
    monkeypatch.setenv("CXX", script(tmp_path / "broken", "echo note >&2; echo 'ld: error: no crt1.o' >&2; exit 1"))
    with pytest.raises(
        BadInput, match=r"CXX=.*broken: the C\+\+ compiler cannot link a library \(ld: error: no crt1.o\)"
    ):
        preflight.refuse_compiler()
    monkeypatch.setenv("CXX", script(tmp_path / "silent", "exit 0"))
    with pytest.raises(BadInput, match=r"cannot link a library \(exit code 0\)"):
        preflight.refuse_compiler()
    monkeypatch.setenv("CXX", "ccache g++")
    with pytest.raises(BadInput, match="without arguments"):
        preflight.refuse_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"no C\+\+ compiler found in PATH; install g\+\+"):
        preflight.refuse_compiler()


@pytest.mark.parametrize("compile", [preflight.refuse_compiler, lambda: toolchain.toolchain().call("x.c")])
def test_what_a_compiler_leaves_on_a_full_disk_is_swept(tmp_path, monkeypatch, compile):
    said = 'touch "$TMPDIR/left.s"; echo "Cannot create temporary file: No space left on device" >&2; exit 1'
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, script(tmp_path / "full", said))
    with pytest.raises(OSError, match="No space left on device"):
        compile()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("variables", "flags", "said"),
    [
        ({"PATH": "/nonexistent"}, [], "no C++ compiler found"),
        ({"CXX": "/nonexistent/g++"}, [], "cannot be started"),
        ({}, ["--out=m.onnx"], "exists and is no bundle"),
        ({}, ["--out=m.onnx/x/y.kerf"], "Not a directory"),
        ({}, ["--threads=4096"], "CPU"),
        ({}, ["--records=m.onnx/r", "--trials=1"], "Not a directory"),
    ],
)
def test_the_command_answers_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capfd, variables, flags, said):
    monkeypatch.chdir(tmp_path)
    mobile(tmp_path / "m.onnx")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["--onnx_path=m.onnx", "--trials=0", *flags], "kerf tune") == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(rf"kerf tune: error: [^\n]*{re.escape(said)}[^\n]*\n", err)
    assert out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
