"""libkerf as a folder that C and C++ programs build with: header, library, CMake package, pkg-config, an example."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import kerf
from kerf import files, temporary
from kerf.deploy.embed.toolchain import SOURCES, Toolchain, sources, toolchain
from kerf.errors import BadInput

NAME = "libkerf"
EXAMPLE = "kerf-example"


@dataclass(frozen=True)
class Exported:
    folder: Path
    library: Path
    compiler: str
    bytes: int  # of the shared library

    def __str__(self) -> str:
        return (
            f"{self.library}: {self.bytes / 1024:.0f} KiB, built by {self.compiler}; include/kerf.h says how to call it"
        )


def export(folder: str | Path, compiler: str = "") -> Exported:
    """Writes libkerf, built by this machine's C compiler or ``compiler`` (a cross compiler, say), into ``folder``.

    Raises BadInput where there is no compiler, it fails, or the folder holds something else; then nothing is written.
    """
    folder, tools = Path(folder), toolchain(compiler)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / "include/kerf.h").is_file():
        raise BadInput(f"{folder}: exists and holds something else than libkerf; give another folder")
    with files.replacing_folder(folder) as new:
        _fill(new, tools)
    library = folder / "lib" / f"{NAME}{tools.suffix}"
    return Exported(folder, library, " ".join(tools.compiler), library.stat().st_size)


def _fill(folder: Path, tools: Toolchain) -> None:
    for name in ("include", "src", "example"):
        shutil.copytree(SOURCES / name, folder / name)
    for path in (SOURCES / "package").iterdir():
        text = path.read_text().replace("@VERSION@", kerf.__version__).replace("@LIBRARY@", f"{NAME}{tools.suffix}")
        place = {".pc": "lib/pkgconfig", ".cmake": "lib/cmake/kerf"}.get(path.suffix, "")
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / path.name).write_text(text)
    library = folder / "lib" / f"{NAME}{tools.suffix}"
    with temporary.folder("objects") as objects:
        tools.compile(sources(), objects, f"-I{folder / 'include'}")
        tools.link(sorted(objects.glob("*.o")), library)
    (folder / "bin").mkdir()
    here = "@loader_path" if tools.suffix == ".dylib" else "$ORIGIN"
    example = [str(SOURCES / "example/main.c"), "-std=c11", "-D_GNU_SOURCE", "-O2", f"-I{folder / 'include'}"]
    linked = [f"-L{library.parent}", "-lkerf", f"-Wl,-rpath,{here}/../lib"]
    tools.call(*example, "-o", str(folder / "bin" / EXAMPLE), *linked)
