"""What a command says, in one line, and exits with when something ends it: bad input, the machine, or kerf itself."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from kerf.errors import INPUT_ERRORS, KerfError

INPUT, INTERNAL, INTERRUPTED = 2, 70, 130  # exit codes; 70 is sysexits.h's EX_SOFTWARE
LONGEST = 600  # characters of a message that another library wrote
FULL = 1 << 16  # bytes: a file system with fewer free is full

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|failed to allocate memory|bad_?alloc|bad allocation"
    r"|CUDA out of memory|unable to allocate|ran out of memory|std::length_error",
    re.IGNORECASE,
)
_NO_SPACE = re.compile(
    r"no space left on device|disk quota exceeded|errno 28\b|os error 28\b|\bIO failure on output"
    r"|\d+ requested and \d+ written",  # numpy's
    re.I,
)


# A function of C++ with its arguments, as ONNX Runtime's messages begin with
_SIGNATURE = re.compile(
    r"(?:/\S+:\d+ )?(?:[\w:<>*&]+ )*onnxruntime::[\w:~<>]+\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? "
)


class Failure(NamedTuple):
    code: int
    line: str


def of(error: BaseException, interrupted: str = "interrupted") -> Failure:
    """What to say of it; of an error that nobody foresaw its traceback is saved in a file first."""
    text, exit_code = one_line(error), code(error)
    if exit_code == INTERRUPTED:
        return Failure(exit_code, interrupted)
    if exit_code == INTERNAL:
        return Failure(exit_code, f"internal error: {type(error).__name__}: {text}; {saved(error)}")
    if isinstance(error, BrokenPipeError):
        text = "whoever reads the output closed it before all was said (a closed pipe)"
    elif _is_memory(error):
        text = f"out of memory ({text}); free some, or give a smaller network, batch or image"
    elif _is_no_space(error):
        text = no_space(getattr(error, "filename", None))
    return Failure(exit_code, f"error: {text}")


def code(error: BaseException) -> int:
    """The exit code alone."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    # Python's own of a module of kerf's, or of a name in a module, is nothing that a person could install
    absent = isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("kerf")
    broken = isinstance(error, ImportError) and error.name is not None and not absent
    known = isinstance(error, INPUT_ERRORS) and not broken
    return INPUT if known or _is_memory(error) or _is_no_space(error) else INTERNAL


def one_line(error: BaseException) -> str:
    """An error's message as one printable line; its type's name where it has none. Messages of other libraries, which
    may be pages, are cut to what they come down to.
    """
    text = str(error)
    return shortened(printable(text if isinstance(error, KerfError) else useful(text))) or type(error).__name__


def shortened(text: str) -> str:
    """Its beginning and its end, which says what to do: what a file holds may be of any length."""
    return text if len(text) <= 2 * LONGEST else f"{text[:LONGEST]} … {text[-LONGEST // 2 :]}"


def useful(text: str) -> str:
    """The line of another library's message that says what is wrong."""
    text = _ESCAPES.sub("", text).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if re.match(r"Traceback|\[\d\d:\d\d:\d\d\]", lines[0]):  # TVM's: the frames of its stack, then the message
        line = re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[-1])
    elif lines[0].startswith(("Command failed", "Compilation error")) or "collect2" in text:  # of a linker
        line = next((found for found in lines if re.search(r"\b(error|cannot)\b", found, re.I)), lines[0])
    else:  # torch's begins with it, and a stack of C++ follows; protobuf's and ONNX's have a context below
        line = " ".join(lines[:3]) if len(lines) < 4 else lines[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", line)
    line = re.sub(r"^(Load model from .{0,300}? failed:|Exception during initialization: )", "", line)
    line = _SIGNATURE.sub("", line)
    line = re.sub(r"/\S*/(onnxruntime|c10|aten|torch|tvm)/\S+:\d+ ", "", line)
    return line if len(line) <= LONGEST else line[:LONGEST].rstrip() + " …"


def printable(text: object) -> str:
    """On one line, without what a terminal would act on: names in a file are anybody's."""
    plain = " ".join(_ESCAPES.sub("", str(text)).split())
    return "".join(c if c.isprintable() else "?" for c in plain)


def _is_memory(error: BaseException) -> bool:
    """Python's, and what libraries in C++ say of theirs."""
    foreign = not isinstance(error, KerfError | OSError)
    return isinstance(error, MemoryError) or (foreign and bool(_MEMORY.search(str(error))))


def _is_no_space(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return not isinstance(error, KerfError) and bool(_NO_SPACE.search(str(error)))


def no_space(name: object = None) -> str:
    """Which file system is full, as far as can be found out, and what to do."""
    temporary = _temporary()
    given = Path(os.fsdecode(name)).absolute().parent if isinstance(name, str | bytes | os.PathLike) else None
    for folder in filter(None, (given, temporary, Path.cwd())):
        what = _full(folder)
        if what and folder == temporary:
            return f"no {what} left for temporary files in {folder}; make room there, or set TMPDIR to another folder"
        if what:
            return f"no {what} left on the device of {folder}; make room there, or write to another one"
    where = f" for {printable(name)}" if given else ", where the output goes or one of the files"
    return f"no space left on the device{where}; make room, or write to another one"


def _full(folder: Path) -> str:
    """ "space" or "inodes", whichever a file system has run out of; else nothing."""
    try:
        found = os.statvfs(next(p for p in (folder, *folder.parents) if p.exists()))
    except OSError:
        return ""
    if found.f_blocks and found.f_bavail * found.f_frsize < FULL:
        return "space"
    return "inodes" if found.f_files and not found.f_favail else ""


def _temporary() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # nothing can be written anywhere
        return None


def saved(error: BaseException) -> str:
    """Where its traceback is now, and what to do with it."""
    version = getattr(sys.modules.get("kerf"), "__version__", "unknown")
    command = shlex.join([Path(sys.argv[0]).name if sys.argv else "", *sys.argv[1:]])
    about = f"kerf {version}, Python {platform.python_version()}, {platform.platform()}\n{command}\n\n"
    content = about + "".join(traceback.format_exception(error))
    for folder in (_temporary(), Path.cwd()):
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix="kerf-error-", suffix=".txt", dir=folder)
            with os.fdopen(handle, "w", errors="backslashreplace") as file:
                file.write(content)
            return f"traceback saved in {name}; to report it, send that file and the input to where you have kerf from"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {Path(frame.filename).name}:{frame.lineno}; its traceback could not be saved: nothing can be written"
