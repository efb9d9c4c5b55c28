"""What differs between systems, with the system faked: names of libraries, CPUs. None but Linux was tried."""

import ctypes
import os
from importlib.machinery import ModuleSpec

import pytest

from kerf.deploy.measure.environment import usable_cpus
from kerf.deploy.runtime import machine, session


@pytest.mark.parametrize(
    ("platform", "names"),  # as the wheels of apache-tvm for each have them
    [
        ("linux", ["libtvm_runtime.so", "libtvm_runtime_extra.so"]),
        ("darwin", ["libtvm_runtime.dylib", "libtvm_runtime_extra.dylib"]),
        ("win32", ["tvm_runtime.dll", "tvm_runtime_extra.dll"]),
    ],
)
def test_the_runtime_is_found_by_each_systems_names(platform, names, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    for name in names:
        (tmp_path / "lib" / name).touch()
    loaded = []
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin=str(tmp_path / "x.py")))
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: loaded.append(path))
    session.load_runtime()
    assert loaded == [str(tmp_path / "lib" / name) for name in names]


@pytest.mark.parametrize(
    ("said", "known"), [("arm64", "aarch64"), ("AMD64", "x86_64"), ("x86_64", "x86_64"), ("aarch64", "aarch64")]
)
def test_architectures_have_one_name(said, known, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: said)
    assert machine.architecture() == known


def test_a_system_that_lists_no_cpus_of_a_process_has_them_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus() == os.cpu_count()


def test_a_system_without_cpuinfo_is_taken_at_its_word(monkeypatch):
    monkeypatch.setattr(machine, "features", set)
    assert machine.missing({"machine": machine.architecture(), "features": ["avx512f"]}) is None
