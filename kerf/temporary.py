"""Temporary folders that outlive nobody: what a killed process left is swept when the next one makes a folder.

A folder's owner holds a lock on a file in it, which the system lets go when the owner ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK = ".kerf-alive"
PREFIX = "kerf-"


@contextlib.contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """An empty folder, removed in the end. Raises OSError where none can be made."""
    sweep()
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
    try:
        with (path / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
    finally:
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
    """Removes folders whose owners are gone, and says which. What has no lock of ours in it is somebody else's."""
    gone = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid() and _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path)
    return gone


def _is_abandoned(path: Path) -> bool:
    """Raises FileNotFoundError where there is no lock."""
    with (path / LOCK).open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
