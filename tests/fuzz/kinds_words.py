"""Odd words where a command expects numbers, sizes and names; keys and signatures that are none."""

import os
import random
import shutil
from pathlib import Path

from tests.fuzz import mutate
from tests.fuzz.pool import Case, command

Random = random.Random
ODD = (
    *(
        "0",
        "-1",
        "1",
        "3",
        "nan",
        "-inf",
        "1e999",
        "1e-400",
        "-0",
        "0.5",
        "2147483648",
        "99999999999999999999",
        "1_000",
    ),
    *("", " ", "x", "é", "٣", "0x10", "1,2", "1e3", "=", "input=", "input=0x3x8x8", "input=1x3x8x8", "input=1x3x-1x8"),
    *("nothing=1x3x8x8", "input=99999999999x3x8x8", "input=1x3x8", "input=1x3x16x16", "None", "true", "[bold]x", "--"),
    *("\x1b[31m", "a\nb", "a" * 3000, "/dev/null", "/dev/full", ".", "..", "/", "absent/x", "tiny.onnx", "\udcff"),
    *("llvm -mcpu=nothing", "llvm -mtriple=x", "cuda -arch=sm_1", "llvm -nothing", "{", '{"kind": "llvm"}', "conv1"),
)
TINY = "--calibration=tiny.npz"
# Words that succeed, and the flags of which one comes beside or in place of them; a float for ever is no odd value
ASKED: tuple[tuple[list[str], tuple[str, ...], tuple[str, ...]], ...] = (
    (["inspect", "tiny.onnx"], ("--bsr", "--shape", "--layer", "--picture"), ("p.svg",)),
    (
        ["quantise", "tiny.onnx", TINY, "--out=q.onnx"],
        ("--calibration_images", "--calibration_method", "--mean", "--std", "--shape", "--calibration", "--out"),
        ("q.onnx",),
    ),
    (
        ["prune", "tiny.onnx", TINY, "--sparsity=0.5", "--out=p.onnx"],
        ("--sparsity", "--N", "--row_multiple", "--shape", "--threads", "--calibration_images", "--mean", "--out"),
        ("p.onnx",),
    ),
    (
        ["tune", "--onnx_path=tiny.onnx", "--trials=0", "--seconds=0.02", "--against=onnxruntime", "--out=t.kerf"],
        ("--bsr", "--bsc", "--sparsity", "--target", "--precision", "--threads", "--batch", "--shape", "--tolerance",
         "--against", "--records", "--engine", "--format", "--calibration", "--out", "--rpc_key", "--trials"),
        ("t.kerf",),
    ),
    (["records", "show", "--records=records.jsonl"], ("--records",), ()),
    (["show", "b.kerf"], ("--json",), ()),
    (["methods"], ("--json", ""), ()),
    (["export-runtime", "runtime"], ("--cc",), ("runtime",)),
    (["compare", "."], ("--json",), ()),
)  # fmt: skip
DEBUG = "--debug"  # asks for a traceback


def flags(seeds: Path, folder: Path, r: Random) -> Case:
    """Files are valid, and one flag is not; or it is, and the command does as it says."""
    for name in ("tiny.onnx", "tiny.npz", "records.jsonl", "x.npy"):
        os.link(seeds / name, folder / name)
    os.symlink(seeds / "mobile.kerf", folder / "b.kerf")
    if r.random() < 0.5:
        return Case("flags", "", command(*_training(r)), folder, absent=("out",))
    words, names, made = r.choice(ASKED)
    name, value = r.choice(names), r.choice(ODD)
    given = [f"{name}={value}"] if r.random() < 0.7 else [name, value]
    return Case("flags", "", command(*words, *given), folder, absent=made if "out" not in name else ())


def _training(r: Random) -> list[str]:
    """Of the command that trains, whose data are not there: every flag is looked at before them."""
    from kerf.compress.command.args import FLAGS

    rows = [row for row in FLAGS.values() if DEBUG not in row.spellings]
    words = [f"{r.choice(row.spellings)}={r.choice([*ODD, *row.choices])}" for row in r.sample(rows, r.choice([1, 2]))]
    where = ["--data_set=imagenet", "--data_path=absent", "--job_dir=out", "--quiet"]
    return [r.choice(["prune", "prune", "sensitivity"]), *where, *words]


def signed(seeds: Path, folder: Path, r: Random) -> Case:
    """A key, a signature or the bundle under it is spoiled: refused, unless nothing changed."""
    made = folder / "b.kerf"
    shutil.copytree(seeds / "mobile.kerf", made)
    for name in ("own.key", "own.key.pub"):
        shutil.copy(seeds / name, folder / name)
    shutil.copy(seeds / "manifest.sig", made)
    words = ["bundle", "verify", "b.kerf", "--key=own.key.pub"]
    path = r.choice([folder / "own.key.pub", made / "manifest.sig", made / "manifest.json", folder / "own.key"])
    if path.name == "own.key":
        words = ["bundle", "sign", "b.kerf", "--key=own.key"]
    before = path.read_bytes()
    if not mutate.damaged(path, r, gone=0.2, broken=0.9):
        path.write_bytes(r.choice([b"", before[::-1], before * 2, (folder / "own.key.pub").read_bytes()]))
    # PEM says less than its bytes: letters outside it, and line ends, may change
    may = (0, 2) if path.suffix in (".key", ".pub") or _same(before, path) else (2,)
    return Case("keys and signatures", "", command(*words), folder, may)


def _same(before: bytes, path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == before
