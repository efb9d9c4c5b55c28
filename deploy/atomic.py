"""A file appears whole or not at all: written beside its place under another name, then renamed."""

import os
import tempfile
from pathlib import Path


def write(path: str | Path, content: bytes | str) -> Path:
    """Writes `content` (text as UTF-8) to `path`, creating folders; an older file stays until the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep other users from reading a result
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
