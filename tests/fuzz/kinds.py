"""Kinds of files, and the commands that read them: for each a way to make one spoiled input."""

import hashlib
import json
import os
import random
import shutil
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from tests.fuzz import mutate, mutate_onnx
from tests.fuzz.kinds_machine import full_disk, names, terminals
from tests.fuzz.kinds_onnx import inspected, pruned, quantised, tuned
from tests.fuzz.kinds_training import checkpoint, cifar, config, evaluated, images, pickled, resumed
from tests.fuzz.kinds_words import flags, signed
from tests.fuzz.pool import Case, command

Random = random.Random
BUNDLES = ("mobile", "mobile", "pieces")


def _bundle(seeds: Path, folder: Path, name: str = "mobile") -> Path:
    """``name``: of its network; x.npy or x.npz beside it is what it takes."""
    made = folder / "b.kerf"
    made.mkdir()
    for file in (seeds / f"{name}.kerf").iterdir():
        if file.name == "library.so":
            os.link(file, made / file.name)
        else:
            shutil.copy(file, made / file.name)
    given = {"mobile": "x.npy", "pieces": "pieces.npz"}[name]
    os.link(seeds / given, folder / f"x{Path(given).suffix}")
    return made


def _used(seeds: Path, folder: Path, r: Random, kind: str, allowed: tuple[int, ...]) -> Case:
    given = next(folder.glob("x.np?")).name
    made = f"y{Path(given).suffix}"
    words = r.choice([["run", "b.kerf", given, made]] * 3 + [["inspect", "b.kerf"]])
    return Case(kind, "", command(*words), folder, allowed, absent=(made,))


def _parts(made: Path) -> list[str]:
    """Models of a dense engine's pieces."""
    return sorted(path.name for path in made.glob("*.onnx"))


def bundle_found(seeds: Path, folder: Path, r: Random) -> Case:
    """A file changed after it was built: always refused."""
    made = _bundle(seeds, folder, r.choice(BUNDLES))
    name = r.choice(["manifest.json", "manifest.json", "library.so", "weights.npz", "records.jsonl", *_parts(made)])
    path, what = made / name, r.random()
    before = path.read_bytes()
    path.unlink()
    if what < 0.15:
        pass
    elif what < 0.35:
        mutate.special(path, r.choice(mutate.SPECIAL))
    elif name == "manifest.json" and what < 0.8:
        path.write_text(mutate.json_text(mutate.spoiled_json(json.loads(before), r), r))
    else:
        path.write_bytes(mutate.spoiled(before, r))
    same = path.is_file() and not path.is_symlink() and _same(before, path.read_bytes(), name)
    return _used(seeds, folder, r, "bundle: as found", (0, 2) if same else (2,))


def _same(before: bytes, after: bytes, name: str) -> bool:
    if name != "manifest.json":
        return before == after
    try:
        return json.loads(before) == json.loads(after)
    except (ValueError, RecursionError):
        return False


def bundle_hashed(seeds: Path, folder: Path, r: Random) -> Case:
    """Changed by somebody who makes the hashes anew: refused, or it works. What is code is not touched: the library and
    the numbers in weights, among which are indices that it trusts.
    """
    made = _bundle(seeds, folder, r.choice(BUNDLES))
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    what = r.random()
    if what < 0.7:
        manifest = mutate.spoiled_json(manifest, r)
    elif what < 0.9:
        content = mutate.npz((made / "weights.npz").read_bytes(), r, values=False)
        (made / "weights.npz").write_bytes(content)
    elif parts := _parts(made):
        part = made / r.choice(parts)
        part.write_bytes(mutate_onnx.spoiled(onnx.load(part), r).SerializeToString())
    else:
        (made / "records.jsonl").write_bytes(mutate.spoiled((made / "records.jsonl").read_bytes(), r))
    if isinstance(manifest, dict):
        hashes = manifest.get("sha256")
        if isinstance(hashes, dict):
            for name in hashes:
                if isinstance(name, str) and "/" not in name and (made / name).is_file():
                    hashes[name] = hashlib.sha256((made / name).read_bytes()).hexdigest()
        manifest.pop("manifest_sha256", None)
        body = json.dumps(manifest, sort_keys=True).encode("utf-8", "surrogatepass")
        manifest["manifest_sha256"] = hashlib.sha256(body).hexdigest()
    path.write_text(json.dumps(manifest))
    case = _used(seeds, folder, r, "bundle: hashes anew", (0, 2))
    return replace(case, hungry=what >= 0.9)  # a piece is code, and may compute what it likes


def records(seeds: Path, folder: Path, r: Random) -> Case:
    """Lines with other JSON, with and without their checksum made anew."""
    path = folder / "r.jsonl"
    lines = (seeds / "records.jsonl").read_text().splitlines()
    what = r.random()
    if what < 0.1:
        mutate.special(path, r.choice(mutate.SPECIAL))
    elif what < 0.3:
        path.write_bytes(mutate.spoiled("\n".join(lines).encode(), r))
    else:
        for _ in range(r.choice([1, 2])):
            i = r.randrange(len(lines))
            lines[i] = _record(lines[i], r)
        path.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    own = folder / "own.jsonl"
    shutil.copy(seeds / "records.jsonl", own)
    words = r.choice([
        ["records", "show", "--records", "r.jsonl"], ["records", "show", "--json", "--records", "r.jsonl"],
        ["records", "export", "out.jsonl", "--records", "r.jsonl"],
        ["records", "export", "--best", "out.jsonl", "--records", "r.jsonl"],
        ["records", "import", "r.jsonl", "--records", "own.jsonl"],
    ])  # fmt: skip
    return Case("records", "", command(*words), folder, absent=("out.jsonl",))


def _record(line: str, r: Random) -> str:
    try:
        fields = json.loads(line)
        fields.pop("crc32")
    except (ValueError, AttributeError, KeyError, RecursionError):  # spoiled before
        return line
    fields = mutate.spoiled_json(fields, r)
    if isinstance(fields, dict) and r.random() < 0.3 and isinstance(fields.get("problem"), str):
        try:
            fields["problem"] = json.dumps(mutate.spoiled_json(json.loads(fields["problem"]), r))
        except ValueError:
            fields["problem"] = "{"
    if not isinstance(fields, dict) or r.random() < 0.1:
        return mutate.json_text(fields, r)
    body = json.dumps(fields, sort_keys=True)
    crc = f"{zlib.crc32(body.encode('utf-8', 'surrogatepass')):08x}"
    return json.dumps({"crc32": crc, **fields}, sort_keys=r.random() < 0.5)


def tuned_with_records(seeds: Path, folder: Path, r: Random) -> Case:
    """Poisoned times and configurations under a compilation."""
    case = records(seeds, folder, r)
    shutil.copy(seeds / "mobile.onnx", folder / "m.onnx")
    flags = [
        "--trials=1",
        "--seconds=0.02",
        "--against=onnxruntime",
        "--quiet",
        "--records=r.jsonl",
        "--tune_minutes=0.2",
    ]
    return Case("records: tune", "", command("tune", "--onnx_path=m.onnx", *flags), case.folder, absent=("m.kerf",))


def array(seeds: Path, folder: Path, r: Random) -> Case:
    _bundle(seeds, folder)
    path = folder / "x.npy"
    content = path.read_bytes()
    path.unlink()
    what = r.random()
    if what < 0.15:
        mutate.special(path, r.choice(mutate.SPECIAL))
    elif what < 0.7:
        path.write_bytes(mutate.npy(r))
    elif what < 0.85:
        path.write_bytes(mutate.spoiled(content, r))
    else:
        path = path.rename(folder / "x.npz") if path.exists() else folder / "x.npz"
        path.write_bytes(mutate.npz((seeds / "calibration.npz").read_bytes(), r))
    return Case("npy: run", "", command("run", "b.kerf", path.name, "y.npy"), folder, absent=("y.npy",))


def compared(seeds: Path, folder: Path, r: Random) -> Case:
    shutil.copytree(seeds / "compare", folder / "runs")
    path = folder / "runs" / "run" / r.choice(["model.kerf/report.json"] * 2 + ["summary.json"])
    value = json.loads(path.read_text())
    if r.random() < 0.1:
        mutate.special(path, r.choice(mutate.SPECIAL))
    else:
        path.write_text(mutate.json_text(mutate.spoiled_json(value, r), r), errors="surrogatepass")
    return Case("report.json: compare", "", command("compare", "runs"), folder)


# Kind -> its share of a campaign. What trains or compiles takes seconds an input, the others a tenth of one.
KINDS: dict[Callable[[Path, Path, Random], Case], float] = {
    inspected: 25, tuned: 2, quantised: 3, pruned: 3, bundle_found: 6, bundle_hashed: 9, records: 10,
    tuned_with_records: 0.8, array: 6, checkpoint: 8, evaluated: 1.2, pickled: 4, config: 6, resumed: 1.2, cifar: 4,
    images: 3, compared: 4, full_disk: 4, terminals: 4, names: 4, flags: 6, signed: 2,
}  # fmt: skip


# Those that take a moment, of files that are there without training.
QUICK = (inspected, quantised, bundle_found, bundle_hashed, records, array, cifar, images, terminals, flags, signed)


def draw(seeds: Path, folder: Path, seed: int, only: str = "", quick: bool = False) -> Case:
    """The input of this number: the same whenever it is asked for."""
    r = Random(seed)
    makers = {
        make: share for make, share in KINDS.items() if only in make.__name__ and not (quick and make not in QUICK)
    }
    make = r.choices(list(makers), list(makers.values()))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make(seeds, folder, r)
    return replace(case, name=str(seed))
