"""Whatever ends a command is one line, and the exit code says whose turn it is."""

import errno
import io
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from kerf import console, failures
from kerf.errors import BadInput

pytestmark = pytest.mark.quick

TVM = """Traceback (most recent call last):
  0: tvm::relax::Something(int)
        at /build/src/relax/ir.cc:12
[12:00:01] /build/src/relax/ir.cc:88: InternalError: Check failed: (x) is false: shapes differ

"""
LINKER = "Compilation error:\n/usr/bin/ld: final link failed: No space left on device\ncollect2: error: ld returned 1"


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BadInput("x.onnx: two\nlines"), 2, "p: error: x.onnx: two lines"),
        (FileNotFoundError("no file"), 2, "p: error: no file"),
        (MemoryError(), 2, "p: error: out of memory (MemoryError); free some"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9"),
            2,
            "p: error: out of memory (Default",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/nowhere/x"), 2, "p: error: no space left on the device"),
        (RuntimeError(LINKER), 2, "p: error: no space left on the device"),
        (OSError("307200 requested and 4096 written"), 2, "p: error: no space left on the device"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "p: error: whoever reads the output closed it"),
        (KeyboardInterrupt(), 130, "p: interrupted\n"),
        (ValueError("cannot reshape"), 70, "p: internal error: ValueError: cannot reshape; traceback saved in "),
        (
            RuntimeError(TVM),
            70,
            "p: internal error: RuntimeError: InternalError: Check failed: (x) is false: shapes di",
        ),
        (RuntimeError("\x1b[31mred\x1b[0m \x07bell"), 70, "p: internal error: RuntimeError: red ?bell; "),
        (ImportError("torch is not installed"), 2, "p: error: torch is not installed"),
        (ModuleNotFoundError("No module named 'kerf.x'", name="kerf.x"), 70, "p: internal error: ModuleNotFoundError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_it_is_one_line_and_the_exit_code_says_whose_turn_it_is(error, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert console.guarded("p", raising(error)) == code
    line = capsys.readouterr().err
    assert line.startswith(said)
    assert line.count("\n") == 1
    assert failures.code(error) == code
    saved = list(tmp_path.glob("kerf-error-*.txt"))
    assert len(saved) == (code == 70)
    for file in saved:
        assert str(file) in line
        assert "Traceback" in file.read_text()
        assert "in work" in file.read_text()


def test_numpy_out_of_memory_has_its_own_words(capsys):
    assert console.guarded("p", lambda: np.zeros(1 << 60, np.uint8)) == 2
    assert "out of memory (Unable to allocate" in capsys.readouterr().err


def test_a_full_folder_for_temporary_files_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(failures, "_full", lambda folder: "inodes" if folder == tmp_path else "")
    assert failures.no_space() == (
        f"no inodes left for temporary files in {tmp_path}; make room there, or set TMPDIR to another folder"
    )


def test_without_a_place_for_the_traceback_the_frame_is_said(monkeypatch, capsys):
    def nowhere(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tempfile, "mkstemp", nowhere)
    assert console.guarded("p", raising(KeyError("x"))) == 70
    assert "at test_failures.py:" in capsys.readouterr().err


def test_what_ascii_lacks_is_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert console.guarded("p", lambda: print("1×4 → \udcff")) == 0
    assert raw.getvalue() == b"1?4 ? ?\n"


def test_a_warning_is_one_line():
    said = []
    assert console.guarded("p", lambda: said.append(warnings.formatwarning("two\nlines", UserWarning, "f.py", 1))) == 0
    assert said == ["p: warning: two lines\n"]


TALKS = """
import time
from kerf import console
words = lambda: [print("x" * 9999, flush=True), time.sleep(0.2), print("y" * 99999)]
raise SystemExit(console.guarded("kerf inspect", words))
"""


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ('{ "$PYTHON" -c "$CODE"; echo $? >code; } | true', "kerf inspect: error: whoever reads the output closed it"),
        ('"$PYTHON" -c "$CODE" >/dev/full; echo $? >code', "kerf inspect: error: "),
        ('"$PYTHON" -c "$CODE" >&-; echo $? >code', ""),
    ],
    ids=["pipe", "full", "closed"],
)
def test_output_that_cannot_be_written_is_one_line(shell, said, tmp_path):
    env = {**os.environ, "CODE": TALKS, "PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (tmp_path / "code").read_text().strip() == ("2" if said else "0")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)
