"""The C compiler of a machine, and how a shared library is named and linked there. Windows is not handled."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerf import temporary
from kerf.errors import BadInput

SECONDS = 300
SOURCES = Path(__file__).parents[1] / "runtime" / "c"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall")


@dataclass(frozen=True)
class Toolchain:
    """``compiler``: words of a command; ``suffix``: of shared libraries."""

    compiler: tuple[str, ...]
    suffix: str

    def compile(self, sources: Sequence[Path], out: Path, *flags: str) -> None:
        """An object file of each source, in the folder ``out``."""
        for source in sources:
            self.call("-c", str(source), "-o", str(out / f"{source.stem}.o"), *FLAGS, *flags)

    def link(self, objects: Sequence[Path], library: Path) -> None:
        """A shared library that is found beside whoever was linked with it."""
        mac = self.suffix == ".dylib"
        shared = (
            ["-dynamiclib", f"-Wl,-install_name,@rpath/{library.name}"] if mac else ["-shared", "-ldl", "-lpthread"]
        )
        named = [] if mac else [f"-Wl,-soname,{library.name}", "-Wl,-z,defs"]
        self.call(*map(str, objects), "-o", str(library), *shared, *named)

    def call(self, *words: str) -> None:
        """Raises BadInput with the compiler's first line about an error, OSError where there is no space."""
        try:
            with temporary.folder("cc") as room:  # for what it leaves on a full disk
                done = subprocess.run(
                    [*self.compiler, *words], capture_output=True, text=True, errors="replace", timeout=SECONDS,
                    env={**os.environ, "TMPDIR": str(room)},
                )  # fmt: skip
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise BadInput(
                f"{self.compiler[0]}: cannot be started ({error.strerror}); name a C compiler in CC"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BadInput(f"{self.compiler[0]}: took more than {SECONDS} s; name another C compiler in CC") from error
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no word of why"]
            first = next((line for line in lines if "error" in line.lower()), lines[0])
            if (full := os.strerror(errno.ENOSPC)) in done.stderr:
                raise OSError(errno.ENOSPC, full)
            raise BadInput(f"{self.compiler[0]}: {first}")


def toolchain(compiler: str = "") -> Toolchain:
    """``compiler``: a command, by default $CC, else the first of cc, gcc and clang that is there. Raises BadInput."""
    if sys.platform == "win32":
        raise BadInput("libkerf is built on Linux and macOS; on Windows bundles run through Python")
    named = compiler or os.environ.get("CC", "")
    words = named.split() if named else [c for c in ("cc", "gcc", "clang") if shutil.which(c)][:1]
    if not words:
        raise BadInput("no C compiler found in PATH; install gcc (Debian: apt install gcc), or name one in CC")
    if not shutil.which(words[0]):
        raise BadInput(f"{words[0]}: no such C compiler; install it, or name another with --cc")
    return Toolchain(tuple(words), ".dylib" if sys.platform == "darwin" else ".so")


def sources() -> list[Path]:
    """Of libkerf; what only ONNX Runtime's operators need is not among them."""
    return sorted(path for path in (SOURCES / "src").glob("*.c") if path.stem != "operators")
