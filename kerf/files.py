"""A file appears whole or not at all: written beside its place under another name, then renamed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; it becomes `path` when the block ends well and is removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep other users from reading a result
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write(path: str | Path, content: bytes | str) -> Path:
    """Writes `content` (text as UTF-8) to `path`, creating folders; an older file stays until the new one is whole."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    return write(path, json.dumps(value, indent=2) + "\n")
