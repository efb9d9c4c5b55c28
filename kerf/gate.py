"""Files that a person gives, looked at before they are read: no pipes, no devices, no more bytes than there may be, and
JSON of the form that is expected (msgspec checks it).

Nothing is allocated that a file merely claims: sizes that it states are compared with those that it has.
"""

from __future__ import annotations

import json
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kerf.errors import BadInput
from kerf.failures import printable

JSON_BYTES = 64 << 20  # of a file of JSON
HEADER_BYTES = 1 << 16  # of an array's header
TENSOR_BYTES = 2 << 30  # of one tensor that a description speaks of: no file of ONNX holds a larger one
RATIO = 1100  # how many times smaller deflate makes anything, at most (1032), with some room
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def refuse_name(path: Path) -> None:
    """Raises BadInput for a name whose bytes are no UTF-8: ONNX Runtime and TVM are given names as text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        said = f"{printable(path)}: its name is not UTF-8, which ONNX Runtime and TVM need; rename it"
        raise BadInput(said) from None


def refuse_special(path: Path, expected: str, most: int | None = None) -> None:
    """Raises FileNotFoundError, or BadInput for what is no file, or has more than ``most`` bytes, before it is opened:
    who opens a pipe waits for another program, and a device has no end.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError) as error:  # a loop of links, a name with a zero in it
        raise BadInput(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    kind = next((name for is_kind, name in _KINDS.items() if is_kind(found.st_mode)), None)
    if kind:
        raise BadInput(f"{path}: {kind}; expected {expected}")
    if most is not None and found.st_size > most:
        raise BadInput(f"{path}: {found.st_size:,} bytes; expected {expected}, of at most {most:,}")


def read_bytes(path: Path, expected: str, most: int | None = None) -> bytes:
    refuse_special(path, expected, most)
    return path.read_bytes()


def read_json(path: Path, kind: Any, expected: str, with_nan: bool = False) -> Any:
    """A file's JSON as a value of ``kind``: a type of Python's, a TypedDict, a dataclass.

    Raises FileNotFoundError, or BadInput that says where in the file another type stands.
    """
    return parsed(read_bytes(path, expected, JSON_BYTES), kind, str(path), expected, with_nan)


def parsed(text: bytes | str, kind: Any, name: str, expected: str, with_nan: bool = False) -> Any:
    """As read_json, of what was read. Raises BadInput, which begins with ``name``. ``with_nan``: of Python's own JSON,
    which has NaN and infinity.
    """
    try:
        value = json.loads(text, parse_constant=None if with_nan else _refuse_nan)
    except RecursionError:
        raise BadInput(f"{name} is not JSON (nested too deep); expected {expected}") from None
    except ValueError as error:  # text that is none, too
        raise BadInput(f"{name} is not JSON ({printable(error)}); expected {expected}") from None
    return converted(value, kind, name, expected)


def _refuse_nan(word: str) -> None:
    raise ValueError(f"it holds {word}")


def converted(value: Any, kind: Any, name: str, expected: str) -> Any:
    """A value of JSON as one of ``kind``. Raises BadInput."""
    if kind == dict[str, Any]:
        if isinstance(value, dict):
            return value
        raise BadInput(f"{name} holds a {type(value).__name__}, expected an object; expected {expected}")
    try:
        return msgspec.convert(value, kind)
    except RecursionError:
        raise BadInput(f"{name} is nested too deep; expected {expected}") from None
    except (msgspec.ValidationError, ValueError) as error:
        raise BadInput(f"{name}: {printable(error)}; expected {expected}") from None


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy file, or those of an .npz by name, told apart by their content. No objects, no pickles.

    Raises FileNotFoundError, or BadInput for anything else, and for sizes that the file does not have.
    """
    expected = "an .npy array, or an .npz of arrays"
    refuse_special(path, expected)
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _archive(path)
            file.seek(0)
            dtype, shape = _header(file)
            _refuse_size(dtype, shape, path.stat().st_size - file.tell())
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except _UNREADABLE as error:
        raise BadInput(f"{path}: not an .npy array, nor an .npz of arrays ({printable(error)})") from error


_UNREADABLE = (
    *(ValueError, EOFError, TypeError, SyntaxError, KeyError, OverflowError, RecursionError, MemoryError),
    *(
        tokenize.TokenError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        zipfile.LargeZipFile,
    ),  # encrypted, another compression
)


def _archive(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > RATIO * member.compress_size + HEADER_BYTES:
                raise ValueError(
                    f"{member.filename} claims {member.file_size:,} bytes, compressed to {member.compress_size:,}"
                )
            with archive.open(member) as file:
                dtype, shape = _header(file)
                _refuse_size(dtype, shape, member.file_size - file.tell())
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _header(file: Any) -> tuple[np.dtype, Sequence[int]]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"of format {version[0]}.{version[1]}; numpy writes numbers in 1.0")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds objects, which reading would run code for")
    return dtype, shape


def _refuse_size(dtype: np.dtype, shape: Sequence[int], there: int) -> None:
    """Raises ValueError unless so many bytes are in the file."""
    claimed = dtype.itemsize
    for size in shape:
        claimed *= size
    if any(size < 0 for size in shape) or claimed > there:
        raise ValueError(
            f"it claims {dtype} {'x'.join(map(str, shape)) or 'alone'}, {claimed:,} bytes, and has {there:,}"
        )
