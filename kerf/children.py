"""Processes that this one starts: they end with it, and what ends them comes back as an error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from kerf.failures import printable, useful

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Called in a child: it is killed when its parent ends, however that ends. Linux; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)


def attempt(work: Callable[[], object], what: str) -> None:
    """Does ``work``, which leaves its result in files, in a child: a compiler that ends its process ends that one.

    Raises RuntimeError with ``what`` and the last thing that was said; what is said otherwise goes nowhere.
    """
    parent = os.getpid()
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of other threads: the child does its one thing and ends
            pid = os.fork()
        if not pid:
            code = 1
            try:
                end_with(parent)
                os.dup2(said.fileno(), 2)
                os.dup2(said.fileno(), 1)
                work()
                code = 0
            except BaseException as error:
                with contextlib.suppress(OSError):
                    text = f"{useful(str(error))}\n" if str(error) else traceback.format_exc()
                    os.write(2, text.encode(errors="replace"))
            finally:
                os._exit(code)
        try:
            _, status = os.waitpid(pid, 0)
        except BaseException:  # Ctrl-C
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        code = os.waitstatus_to_exitcode(status)
        if code:
            said.seek(0)
            lines = said.read()[-20000:].decode(errors="replace").strip().splitlines()
            reason = next((line for line in reversed(lines) if "ERROR" in line or "rror" in line), (lines or [""])[-1])
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise RuntimeError(f"{what}: {printable(reason) or ended}")


def workspace(folder: Path) -> None:
    """Called in a child: its own temporary files, and those of compilers that it starts, lie in ``folder``."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
