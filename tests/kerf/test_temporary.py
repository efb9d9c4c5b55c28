"""What a killed process leaves is swept, what a living one has is not; children end with their parent."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kerf import children, temporary

ROOT = str(Path(__file__).parents[2])
HOLDS = """
import sys, time
from kerf import temporary
with temporary.folder("test") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
STARTS = """
import os, subprocess, sys, time
from kerf import children
parent = os.getpid()
if not os.fork():
    children.end_with(parent)
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def started(code, folder):
    env = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(folder)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    return process, process.stdout.readline().strip()


def test_a_folder_is_swept_once_its_owner_was_killed_and_not_before(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process, name = started(HOLDS, tmp_path)
    foreign = tmp_path / "kerf-foreign-x"
    begun = tmp_path / f"kerf-begun-x{temporary.SUFFIX}"  # by one that was killed in between
    foreign.mkdir()
    (foreign / "data").write_text("somebody's, by a name like ours")
    os.utime(foreign, (0, 0))
    assert temporary.sweep() == []
    assert Path(name).is_dir()
    (begun / "rest").mkdir(parents=True)
    assert temporary.sweep() == [begun]
    assert not begun.exists()
    process.kill()
    process.wait()
    with temporary.folder("next") as own:
        assert not Path(name).exists()
        assert temporary.sweep() == []
        assert own.is_dir()
    assert not own.exists()
    assert (foreign / "data").exists()


def test_a_folder_that_somebody_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    flock, swept = temporary.fcntl.flock, []

    def late(lock, how):
        if not how & temporary.fcntl.LOCK_NB and not swept:
            swept.extend(temporary.sweep())
        flock(lock, how)

    monkeypatch.setattr(temporary.fcntl, "flock", late)
    with temporary.folder("test") as own:
        assert len(swept) == 1
        assert own not in swept
        assert own.is_dir()
        assert temporary.sweep() == []
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_somebody_still_writes_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove, left = temporary.shutil.rmtree, [2]

    def late(path, **options):
        remove(path, **options)
        if left[0]:
            left[0] -= 1
            path.mkdir()
            (path / "late").touch()

    monkeypatch.setattr(temporary.shutil, "rmtree", late)
    with temporary.folder("test") as own:
        pass
    assert not own.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    process, pid = started(STARTS, tmp_path)
    process.kill()
    process.wait()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.01)
    os.kill(int(pid), signal.SIGKILL)
    pytest.fail("the child lives")


def fails(how):
    if how == "abort":
        os.write(2, b"noise\nLLVM ERROR: IO failure on output stream: No space left on device\n")
        os.abort()
    if how == "exit":
        os._exit(3)
    raise RuntimeError("Compilation error:\n/usr/bin/ld: cannot open output file\ncollect2: error: ld returned 1")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("abort", "x cannot be linked: LLVM ERROR: IO failure on output stream: No space left on device"),
        ("exit", "x cannot be linked: exit code 3"),
        ("raise", "x cannot be linked: "),
    ],
)
def test_what_ends_a_compiler_comes_back_as_an_error(how, said):
    with pytest.raises(RuntimeError) as error:
        children.attempt(lambda: fails(how), "x cannot be linked")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_what_it_writes_stays(tmp_path):
    children.attempt(lambda: (tmp_path / "x").write_text("1"), "nothing")
    assert (tmp_path / "x").read_text() == "1"


def test_temporary_files_of_other_libraries_lie_in_a_folder_that_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary.others("test", 1):
        (inside,) = tmp_path.iterdir()
        assert tempfile.gettempdir() == str(inside)
        assert temporary.sweep() == []
    assert tempfile.gettempdir() == str(tmp_path)
    with pytest.raises(OSError, match="No space left"), temporary.others("test", 1 << 60):
        pass
    assert not list(tmp_path.iterdir())
