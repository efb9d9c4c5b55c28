"""Temporary folders that outlive nobody: what a killed process left is swept when the next one makes a folder.

A folder's owner holds a lock on it, which the system lets go when the owner ends, however it ends. What is ours is told
by its name: a process that is killed while it makes or removes one leaves nothing that the next does not know.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX, SUFFIX = "kerf-", ".held"
ENDING_SECONDS = 1.0  # in which workers that were killed stop to write


@contextlib.contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """An empty folder, removed in the end. Raises OSError where none can be made."""
    sweep()
    path, lock = _made(purpose)
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def _made(purpose: str) -> tuple[Path, int]:
    """A folder, and what holds its lock; another, if somebody swept it before it had one."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", suffix=SUFFIX))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks of folders, where nobody sweeps
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_dir():
                return path, lock
            os.close(lock)


def _remove(path: Path) -> None:
    """Again where something appears in it meanwhile."""
    end = time.monotonic() + ENDING_SECONDS
    shutil.rmtree(path, ignore_errors=True)
    while path.exists() and time.monotonic() < end:
        time.sleep(0.01)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def others(purpose: str, needed: int) -> Iterator[None]:
    """Within, other libraries' temporary files lie in such a folder, too. Raises OSError where it has no room for so
    many bytes: what C++ writes to a disk that is full is cut short, and nobody is told.
    """
    before = tempfile.tempdir
    with folder(purpose) as path:
        if shutil.disk_usage(path).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        tempfile.tempdir = str(path)
        try:
            yield
        finally:
            tempfile.tempdir = before


def sweep() -> list[Path]:
    """Removes folders whose owners are gone, and says which. What is not named as ours is somebody else's."""
    gone = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid() and _swept(path):
                gone.append(path)
    return gone


def _swept(path: Path) -> bool:
    """Removed while its lock is held, so that nobody begins to use it."""
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
