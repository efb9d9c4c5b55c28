"""Valid files on an unlucky machine: file systems that are full, without inodes or read-only, terminals that are closed
or plain ASCII, names that no shell would give.
"""

import ctypes
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from tests.fuzz.pool import HALF, Case, command

Random = random.Random
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 0x4000, 1 << 18
TINY = ["--calibration=tiny.npz"]
COMPILED = ["--trials=0", "--seconds=0.02", "--against=onnxruntime", "--quiet"]
NAMES = (
    "a b.{}", " .{}", "'quoted\".{}", "[bold]x[/bold].{}", "\x1b[31mred.{}", "a\nb.{}", "\u202egnp.{}",
    "é" * 100 + ".{}", "%s%n.{}", "{{0}}.{}", "$(touch x).{}", "日本語.{}", "a.tar.{}", "😀.{}", "\udcff\udcfe.{}",
    "x" * 200 + ".{}", "*.{}", "#.{}", "a=b.{}", "a,b.{}", "~.{}", "CON.{}", "dir.{}/inner.{}",
)  # fmt: skip


def small_file_system(at: Path, size: int, inodes: int, writable: bool) -> None:
    """Mounts one of so many bytes and inodes for this process alone. Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    user = 0 if os.geteuid() == 0 else CLONE_NEWUSER
    if libc.unshare(user | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    options = f"size={max(size, 4096)},nr_inodes={inodes},mode=777".encode()
    if libc.mount(b"tmpfs", os.fsencode(at), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    if not writable and libc.mount(None, os.fsencode(at), None, MS_REMOUNT | MS_RDONLY, None):
        raise OSError(ctypes.get_errno(), "remount")


def may_mount() -> bool:
    """Tried in a child, which keeps the mount to itself."""
    with tempfile.TemporaryDirectory() as name:
        pid = os.fork()
        if not pid:
            try:
                small_file_system(Path(name), 4096, 4, True)
            except OSError:
                os._exit(1)
            os._exit(0)
        return os.waitpid(pid, 0)[1] == 0


def _words(seeds: Path, folder: Path, r: Random, to: str) -> list[str]:
    """A command that succeeds, and writes to ``to``."""
    for name in ("tiny.onnx", "tiny.npz", "records.jsonl", "x.npy"):
        os.link(seeds / name, folder / name)
    os.symlink(seeds / "mobile.kerf", folder / "b.kerf")
    return r.choice([
        ["quantise", "tiny.onnx", *TINY, f"--out={to}/q.onnx"],
        ["prune", "tiny.onnx", *TINY, "--sparsity=0.5", f"--out={to}/p.onnx"],
        ["run", "b.kerf", "x.npy", f"{to}/y.npy"], ["run", "b.kerf", "x.npy", f"{to}/y.npy"],
        ["records", "export", f"{to}/r.jsonl", "--records=records.jsonl"],
        ["records", "import", "records.jsonl", f"--records={to}/r.jsonl"],
        ["inspect", "tiny.onnx", "--layer=second", f"--picture={to}/p.svg"],
        ["bundle", "keys", f"{to}/own.key"],
        *([["tune", "--onnx_path=tiny.onnx", *COMPILED, f"--out={to}/t.kerf"]] if r.random() < 0.3 else []),
        *([["export-runtime", f"{to}/runtime"]] if r.random() < 0.2 else []),
    ])  # fmt: skip


def full_disk(seeds: Path, folder: Path, r: Random) -> Case:
    """Output, temporary files or both on a file system that is too small, has no inodes, or cannot be written. The
    output is there whole or not at all, and nothing else is left beside it.
    """
    (folder / "small").mkdir()
    words = _words(seeds, folder, r, "small" if (where := r.choice(["out", "out", "tmp", "both"])) != "tmp" else ".")
    size, inodes = r.choice([4096, 8192, 20_000, 65_536, 300_000, 10**7]), r.choice([1, 2, 3, 4, 6, 1000, 1000, 1000])
    writable = r.random() < 0.85
    filled = r.random()  # how much of it is somebody else's

    def work() -> int:
        small = Path("small")
        small_file_system(small.absolute(), size, inodes, writable)
        if writable and inodes > 2:
            (small / "others").write_bytes(bytes(int(filled * (size - 4096))))
        if where != "out":
            os.environ["TMPDIR"] = tempfile.tempdir = str(small.absolute())
        before = {*_below(small), *_below(Path())}
        code = command(*words)()
        left = {path for path in {*_below(small), *_below(Path())} - before if "kerf-error-" not in path}
        if code and left:
            print(HALF, sorted(left))
        return code

    return Case("full, tiny or read-only disks", "", work, folder)


def _below(folder: Path) -> list[str]:
    """Files, but for those where a case's own words go, and a book of records without any."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name not in (".stdout", ".stderr")]
    return [str(p) for p in found if p.suffix != ".jsonl" or p.stat().st_size]


def terminals(seeds: Path, folder: Path, r: Random) -> Case:
    """Where the answer goes: nowhere, a pipe that nobody reads, a full device, a terminal of few letters."""
    for name in ("tiny.onnx", "records.jsonl"):
        os.link(seeds / name, folder / name)
    for name in ("mobile.kerf", "compare"):
        os.symlink(seeds / name, folder / name)
    shutil.copy(seeds / "small.pth" if (seeds / "small.pth").exists() else seeds / "tiny.onnx", folder / "c.pth")
    words = r.choice([
        ["inspect", "tiny.onnx"], ["inspect", "tiny.onnx", "--json"], ["inspect", "mobile.kerf"], ["methods"],
        ["methods", "--json"], ["records", "show", "--records=records.jsonl"], ["show", "c.pth"], ["--help"],
        ["tune", "--help"], ["nonsense"], ["inspect", "absent-é😀.onnx"], ["records", "show", "--json", "--records=é"],
    ])  # fmt: skip
    where = r.choice(["closed pipe", "closed", "full", "ascii", "latin-1", "err ascii"])

    def work() -> int:
        _redirect(where)
        return command(*words)()

    return Case("terminals and pipes", "", work, folder)


def _redirect(where: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        REPLACED.append(stream)  # which would close its descriptor when it goes
    if where == "closed pipe":
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
    elif where == "closed":
        sys.stdout = None
        os.close(1)
        return
    elif where == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    encoding = {"ascii": "ascii", "latin-1": "latin-1"}.get(where, "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, errors="strict", closefd=False)  # noqa: SIM115
    if where == "err ascii":
        sys.stderr = open(2, "w", encoding="ascii", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


REPLACED: list[TextIO] = []


def names(seeds: Path, folder: Path, r: Random) -> Case:
    """Valid files under odd names: what is done under a plain name is done under these."""
    pattern = r.choice(NAMES)

    def name(kind: str) -> str:
        return pattern.replace("{}", kind).replace("{{0}}", "{0}")

    kind, words = r.choice(WORDS)
    given = folder / name(kind)
    given.parent.mkdir(exist_ok=True)
    (shutil.copytree if kind == "kerf" else shutil.copy)(seeds / SOURCES[kind], given)
    for other in ("tiny.onnx", "tiny.npz", "x.npy", "mobile.kerf", "records.jsonl"):
        os.symlink(seeds / other, folder / f"plain-{other}")
    words = [word.format(given=name(kind), made=f"made-{name(kind)}") if "{" in word else word for word in words]
    text = not any(0xDC80 <= ord(letter) <= 0xDCFF for letter in pattern)  # else libraries in C++ are not told of it
    return Case("odd names", "", command(*words), folder, (0,) if text else (0, 2))


SOURCES = {
    "onnx": "tiny.onnx",
    "kerf": "mobile.kerf",
    "npy": "x.npy",
    "jsonl": "records.jsonl",
    "npz": "tiny.npz",
}
# kind of the file with the name, and a command that takes it
WORDS: tuple[tuple[str, list[str]], ...] = (
    ("onnx", ["inspect", "{given}"]),
    ("onnx", ["inspect", "--json", "{given}"]),
    ("onnx", ["quantise", "{given}", "--calibration=plain-tiny.npz", "--out={made}"]),
    ("onnx", ["prune", "{given}", "--calibration=plain-tiny.npz", "--sparsity=0.5", "--out={made}"]),
    ("npz", ["quantise", "plain-tiny.onnx", "--calibration={given}", "--out={made}"]),
    ("kerf", ["run", "{given}", "plain-x.npy", "{made}"]),
    ("kerf", ["inspect", "{given}"]),
    ("npy", ["run", "plain-mobile.kerf", "{given}", "{made}"]),
    ("jsonl", ["records", "show", "--records={given}"]),
    ("jsonl", ["records", "export", "{made}", "--records={given}"]),
    ("jsonl", ["records", "import", "{given}", "--records={made}"]),
    ("onnx", ["tune", "--onnx_path={given}", *COMPILED]),
)
