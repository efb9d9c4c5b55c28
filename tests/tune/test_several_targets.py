"""A bundle with code for several CPUs: each takes what asks most of what it has, in Python and in C."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import kerf
from kerf.deploy.compiler import targets
from kerf.deploy.embed import c_library
from kerf.deploy.runtime import machine
from kerf.deploy.runtime.bundle import BundleError
from kerf.errors import BadInput
from tests.helpers.onnx_networks import mobile

TARGETS = "x86-64-v3,native,x86-64-v2"
pytestmark = pytest.mark.skipif(machine.architecture() != "x86_64", reason="the targets are of x86-64")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> kerf.Bundle:
    path = mobile(tmp_path_factory.mktemp("fleet") / "model.onnx")
    return kerf.compile(path, trials=0, seconds=0.1, against=(), engine="kerf", target=TARGETS)


def ran(session) -> int:
    """Number of features that the plan which runs asks for."""
    return len(session._entries[0]["needs"]["features"])


def test_every_target_has_code_of_its_own_and_weights_are_stored_once(fleet):
    plans = fleet.manifest["plans"]
    assert [plan["target"] for plan in plans] == list(map(targets.describe, targets.several(TARGETS, 1)))
    assert len({plan["library"] for plan in plans}) == 3
    assert all((fleet.path / plan["library"]).is_file() for plan in plans)
    _, v3, v2 = (plan["steps"][0]["weights"] for plan in plans)
    assert set(v3) & set(v2)
    assert fleet.manifest["needs"] == plans[0]["needs"]


def test_a_cpu_takes_the_code_that_asks_most_of_what_it_has(fleet, monkeypatch):
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    plans, y = fleet.manifest["plans"], fleet.run(x)
    for i, plan in enumerate(plans):
        monkeypatch.setattr(machine, "features", lambda has=plan["needs"]["features"]: set(has))
        session = kerf.load(fleet.path)
        assert session._entries[0] == plan
        assert len(session._entries) == len(plans) - i
        assert np.allclose(session.run(x), y, atol=1e-5)
    monkeypatch.setattr(machine, "features", lambda: {"nothing"})
    with pytest.raises(BundleError, match="which this CPU lacks"):
        kerf.load(fleet.path)


def test_one_can_be_asked_for_by_name(fleet):
    plan = fleet.manifest["plans"][1]
    assert kerf.load(fleet.path, target=plan["target"])._entries == [plan]
    with pytest.raises(BadInput, match="has code for llvm"):
        kerf.load(fleet.path, target="llvm -mcpu=486")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("native,cuda -arch=sm_90", "CPUs of one architecture"),
        ("native,llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76", "CPUs of one architecture"),
        ("native,no-such-cpu", "LLVM knows no such CPU"),
    ],
)
def test_targets_that_no_machine_could_choose_between_are_refused(tmp_path, target, said):
    with pytest.raises(BadInput, match=said):
        kerf.compile(mobile(tmp_path / "m.onnx"), trials=0, target=target)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_commas_of_features_are_no_commas_between_targets():
    found = targets.several("llvm -mcpu=x86-64 -mattr=+avx2,+fma,x86-64-v2", 1)
    assert {str(t.attrs["mcpu"]) for t in found} == {"x86-64", "x86-64-v2"}


QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_c_takes_the_right_code_here_and_on_an_emulated_haswell(fleet, tmp_path):
    library = c_library.export(tmp_path / "runtime").folder
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [library / "bin/kerf-example", fleet.path, tmp_path / "x.npy", "--runs", "2", "--out", tmp_path / "y"]

    def target(*emulator: str | Path) -> str:
        done = subprocess.run([*emulator, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert np.allclose(np.fromfile(tmp_path / "y", np.float32), fleet.run(x)[0], atol=1e-5)
        return done.stdout.rpartition("runs, ")[2].strip()

    native, v3, v2 = (plan["target"] for plan in fleet.manifest["plans"])
    assert target() == native
    if QEMU is None:
        pytest.skip("qemu-x86_64 is not installed (Debian: qemu-user); this machine's own code was taken")
    assert target(QEMU, "-cpu", "Haswell") == v3
    assert target(QEMU, "-cpu", "Nehalem") == v2
