"""What a machine must have before a network is compiled on it: found out in a moment, and before any work is done.

Everything is tried, not asked for: permissions say little to root, and nothing of read-only or full file systems, of
those that forbid execution, or of a compiler without its linker.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import subprocess
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kerf import temporary
from kerf.deploy.measure.environment import usable_cpus
from kerf.errors import BadInput
from kerf.gate import refuse_special

TVM = "0.27.0.post1"  # as pyproject.toml has it
ROOM = 1 << 20  # bytes that must be free where something small is written
SECONDS = 60  # for a compiler to link nothing


def refuse_tvm() -> None:
    """Raises ImportError unless TVM is installed, in the version that kerf's kernels are made for."""
    try:
        found = version("apache-tvm")
    except PackageNotFoundError as error:
        raise ImportError(f"apache-tvm is not installed; pip install apache-tvm=={TVM}") from error
    if found != TVM:
        raise ImportError(f"apache-tvm {found} is installed, and kerf needs {TVM}; pip install apache-tvm=={TVM}")


def refuse_threads(threads: int) -> None:
    """Raises BadInput for more threads than this process may use CPUs: they would wait for each other."""
    allowed, why = usable_cpus(), "this process may run on"
    if (share := quota()) is not None and math.ceil(share) < allowed:
        allowed, why = math.ceil(share), "the quota of this process's control group allows"
    if threads > allowed:
        raise BadInput(f"--threads {threads}: {why} {allowed} CPU{'s' if allowed > 1 else ''}; give at most so many")


def quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the control groups of this process leave to it; None without a limit. Version 2, and version 1."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers if controllers else groups
        folder = root / path.strip("/")
        for place in (folder, *(p for p in folder.parents if p.is_relative_to(root))):
            if (limit := _limit(place)) is not None:
                found.append(limit)
    return min(found, default=None)


def _limit(folder: Path) -> float | None:
    """Of one control group."""
    try:
        if (folder / "cpu.max").is_file():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(most) / int(period) if int(most) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # absent, or "max"
        return None


def refuse_out(out: Path, room: int = ROOM, loaded: bool = True) -> None:
    """Raises BadInput unless a folder of ``room`` bytes can appear at ``out``, and libraries be ``loaded`` from it."""
    folder = _existing(out.absolute().parent)
    refuse_folder(folder, f"--out {out}", room, loaded, "give --out another folder")


def refuse_records(records: Path) -> None:
    """Raises BadInput unless measurements can be appended to the file, or it be made."""
    what, instead = f"--records {records}", "give --records another file"
    if records.exists() or records.is_symlink():
        refuse_special(records, "a file of records")
        try:
            with records.open("ab"):
                pass
        except OSError as error:
            raise BadInput(f"{what}: cannot be written ({error.strerror}); {instead}") from error
    refuse_folder(_existing(records.absolute().parent), what, loaded=False, instead=instead)


def refuse_temporary() -> None:
    """Raises BadInput unless candidates can be built and loaded in the folder for temporary files.

    Warns where it is not the one that TMPDIR names: Python takes another if that cannot be written.
    """
    folder, named = Path(tempfile.gettempdir()), os.environ.get("TMPDIR")
    if named and folder != Path(named).absolute():
        warnings.warn(f"TMPDIR={named}: cannot be written; temporary files go to {folder}", stacklevel=2)
    refuse_folder(folder, f"temporary files in {folder}", loaded=True, instead="set TMPDIR to another folder")


def refuse_folder(folder: Path, what: str, room: int = ROOM, loaded: bool = True, instead: str = "") -> None:
    """Raises BadInput unless a file can be written there, and mapped as code where libraries are ``loaded`` from it."""
    try:
        with tempfile.TemporaryFile(prefix=".kerf-", dir=folder) as file:
            file.write(b"\0" * mmap.PAGESIZE)
            file.flush()
            system = os.fstatvfs(file.fileno())
            free = system.f_bavail * system.f_frsize
            if loaded:
                try:
                    prot = mmap.PROT_READ | mmap.PROT_EXEC
                    mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=prot).close()
                except OSError as error:
                    said = f"{what}: its file system forbids execution (mounted noexec?), so no library can be loaded"
                    raise BadInput(f"{said} from there; {instead}") from error
    except OSError as error:
        raise BadInput(f"{what}: nothing can be written in {folder} ({error.strerror}); {instead}") from error
    if system.f_blocks and free < room:
        raise BadInput(f"{what}: {free / 1e6:.1f} MB are free there, {room / 1e6:.1f} MB are needed; {instead}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: where it will be made."""
    return next(p for p in (folder, *folder.parents) if p.exists())


def refuse_compiler() -> None:
    """Raises BadInput unless the compiler that TVM links libraries with can link one."""
    from tvm.support.cc import get_cc

    compiler, variable = get_cc(), next((name for name in ("CXX", "CC") if os.environ.get(name)), "")
    if not compiler:
        raise BadInput("no C++ compiler found in PATH; install g++ (Debian: apt install g++) or name one in CXX")
    named = f"{variable}={compiler}" if variable else compiler
    with temporary.folder("link") as folder:
        source, library = Path(folder) / "nothing.c", Path(folder) / "nothing.so"
        source.write_text("int kerf_nothing(void) { return 0; }\n")
        words = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]  # as TVM calls it
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=SECONDS,
                env={**os.environ, "TMPDIR": str(folder)},  # of what it leaves on a full disk
            )  # fmt: skip
        except OSError as error:
            raise BadInput(
                f"{named}: the C++ compiler cannot be started ({error.strerror}); install g++, or set CXX to the path "
                "of one, without arguments"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BadInput(f"{named}: the C++ compiler does not link a library within {SECONDS} s") from error
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        if done.returncode or not library.exists():
            raise BadInput(f"{named}: the C++ compiler cannot link a library ({_first_error(done)}); install g++")


def _first_error(done: subprocess.CompletedProcess[str]) -> str:
    """The first line that speaks of one, else the first."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    first = lines[0] if lines else f"exit code {done.returncode}"
    return next((line for line in lines if "error" in line.lower()), first)
