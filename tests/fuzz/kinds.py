"""Kinds of files, and the commands that read them: for each a way to make one spoiled input."""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend.soundness import BEYOND
from tests.fuzz import mutate, mutate_onnx
from tests.fuzz.pool import ACCEPTED, REFUSED, Case
from tests.fuzz.seeds import NETWORKS, TRAINING, safetensors, with_header

Random = random.Random


def command(*words: str) -> Callable[[], int]:
    def work() -> int:
        from kerf import cli

        return cli.main(list(words))

    return work


def compared_with_onnxruntime(path: str, *words: str) -> Callable[[], int]:
    """The command, and what ONNX Runtime says of the same file: kerf refuses no file that runs there, but for limits of
    its own, and accepts none that it does not load.
    """
    run = command(*words)

    def work() -> int:
        code = run()
        if Path(path).is_file() and Path(path).stat().st_size < 10**7 and code in (0, 2):
            said = Path(".stderr").read_text(errors="replace")
            if code == 2 and not any(word in said for word in OWN_LIMITS) and _runs(path):
                print(REFUSED)
            if code == 0 and not _loads(path):
                print(ACCEPTED)
        return code

    return work


# What kerf says of valid files that it does not take: each is written down in docs/tuning.md or docs/reliability.md.
OWN_LIMITS = (
    "sizes are free",
    "training mode",
    "NaN or infinity",
    "needs ",
    "of kerf's own",
    "pixels",
    "--shape",
    "2,147,483,647",
)


def _session(path: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _loads(path: str) -> bool:
    try:
        _session(path)
    except Exception as error:
        return type(error).__name__ == "NotImplemented" or any(word in str(error) for word in BEYOND)
    return True


def _runs(path: str) -> bool:
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
    try:
        session = _session(path)
        feeds = {}
        for value in session.get_inputs():
            shape = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
            if np.prod(shape) > 10**7:
                return False
            feeds[value.name] = np.ones(shape, kinds[value.type])
        session.run(None, feeds)
    except Exception:
        return False
    return True


def _model(seeds: Path, r: Random, name: str = "") -> onnx.ModelProto:
    return onnx.load(
        str(seeds / (name or r.choice(["mobile", "tiny", *(f"random{i}" for i in range(NETWORKS))]))) + ".onnx"
    )


def _onnx_file(seeds: Path, folder: Path, r: Random, name: str = "") -> Path:
    path = folder / "model.onnx"
    model, what = _model(seeds, r, name), r.random()
    if what < 0.75:
        path.write_bytes(mutate_onnx.spoiled(model, r).SerializeToString())
    elif what < 0.96:
        path.write_bytes(mutate.spoiled(model.SerializeToString(), r))
    else:
        mutate.special(path, r.choice(mutate.SPECIAL))
    if r.random() < 0.1:
        os.mkfifo(folder / "fifo")
    return path


def inspected(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r)
    work = compared_with_onnxruntime(path.name, "inspect", path.name, *r.choice([[], ["--json"]]))
    return Case("onnx: inspect", "", work, folder)


def tuned(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r, r.choice(["tiny", "tiny", "random1", "random2", "random5"]))
    flags = ["--trials=0", "--seconds=0.02", "--against=onnxruntime", "--quiet", "--out=out.kerf"]
    flags += r.choice([[], ["--engine=kerf"]])
    return Case("onnx: tune", "", command("tune", f"--onnx_path={path.name}", *flags), folder, absent=("out.kerf",))


def quantised(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r, "tiny")
    words = ["quantise", path.name, f"--calibration={_calibration(seeds, folder, r)}", "--out=q.onnx"]
    return Case("onnx: quantise", "", command(*words), folder, absent=("q.onnx",))


def pruned(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r, "tiny")
    words = ["prune", path.name, f"--calibration={_calibration(seeds, folder, r)}", "--sparsity=0.5", "--out=p.onnx"]
    return Case("onnx: prune", "", command(*words), folder, absent=("p.onnx",))


def _calibration(seeds: Path, folder: Path, r: Random) -> str:
    path = folder / "c.npz"
    content = (seeds / "tiny.npz").read_bytes()
    if r.random() < 0.3:
        content = mutate.npz(content, r)
    path.write_bytes(content)
    return path.name


def _bundle(seeds: Path, folder: Path) -> Path:
    made = folder / "b.kerf"
    made.mkdir()
    for file in (seeds / "mobile.kerf").iterdir():
        if file.name == "library.so":
            os.link(file, made / file.name)
        else:
            shutil.copy(file, made / file.name)
    os.link(seeds / "x.npy", folder / "x.npy")
    return made


def _used(seeds: Path, folder: Path, r: Random, kind: str, allowed: tuple[int, ...]) -> Case:
    words = r.choice([["run", "b.kerf", "x.npy", "y.npy"]] * 3 + [["inspect", "b.kerf"]])
    return Case(kind, "", command(*words), folder, allowed, absent=("y.npy",))


def bundle_found(seeds: Path, folder: Path, r: Random) -> Case:
    """A file changed after it was built: always refused."""
    made = _bundle(seeds, folder)
    name = r.choice(["manifest.json", "manifest.json", "library.so", "weights.npz", "records.jsonl"])
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
    made = _bundle(seeds, folder)
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    what = r.random()
    if what < 0.7:
        manifest = mutate.spoiled_json(manifest, r)
    elif what < 0.9:
        content = mutate.npz((made / "weights.npz").read_bytes(), r, values=False)
        (made / "weights.npz").write_bytes(content)
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
    return _used(seeds, folder, r, "bundle: hashes anew", (0, 2))


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


def _spoiled_safetensors(path: Path, r: Random) -> bytes:
    header, data = safetensors(path)
    what = r.random()
    if what < 0.25:
        return mutate.spoiled(path.read_bytes(), r)
    if what < 0.5:
        own = header.get("__metadata__", {})
        state = json.loads(own.get("kerf", "{}"))
        header["__metadata__"] = {"kerf": mutate.json_text(mutate.spoiled_json(state, r), r)}
        return with_header(header, data)
    if what < 0.6:
        return with_header(mutate.json_text(header, r).encode("utf-8", "surrogatepass"), data)
    return with_header(mutate.spoiled_json(header, r), data)


def checkpoint(seeds: Path, folder: Path, r: Random) -> Case:
    path = folder / "c.safetensors"
    if r.random() < 0.08:
        mutate.special(path, r.choice(mutate.SPECIAL))
    else:
        path.write_bytes(_spoiled_safetensors(seeds / "run" / "checkpoint" / "best.safetensors", r))
    words = r.choice([["show", path.name]] * 3 + [["inspect", path.name]] * 3 + [["show", "--json", path.name]])
    return Case("safetensors: show, inspect", "", command(*words), folder)


def evaluated(seeds: Path, folder: Path, r: Random) -> Case:
    path = folder / "c.safetensors"
    path.write_bytes(_spoiled_safetensors(seeds / "run" / "checkpoint" / "best.safetensors", r))
    words = ["prune", *TRAINING, f"--evaluate={path.name}", "--job_dir=out", "--quiet"]
    return Case("safetensors: evaluate", "", command(*words), folder)


def pickled(seeds: Path, folder: Path, r: Random) -> Case:
    path = folder / "c.pth"
    what = r.random()
    if what < 0.1:
        mutate.special(path, r.choice(mutate.SPECIAL))
    elif what < 0.8:
        path.write_bytes(mutate.spoiled((seeds / "small.pth").read_bytes(), r))
    else:
        path.write_bytes(
            pickle.dumps(
                r.choice([[], {}, {"a": 1}, {"a": np.zeros(3)}, {"w": os.system}, "x", Random(1)]), r.choice([2, 4])
            )
        )
    return Case(".pth: show", "", command("show", path.name), folder)


def config(seeds: Path, folder: Path, r: Random) -> Case:
    path = folder / "config.json"
    value = json.loads((seeds / "run" / "config.json").read_text()) | {"data_set": "imagenet", "data_path": "absent"}
    if r.random() < 0.12:
        mutate.special(path, r.choice(mutate.SPECIAL))
    else:
        path.write_text(mutate.json_text(mutate.spoiled_json(value, r), r), errors="surrogatepass")
    words = ["prune", f"--config={path.name}", "--data_set=imagenet", "--data_path=absent", "--job_dir=out"]
    return Case("--config", "", command(*words), folder, (2,), absent=("out",))


def resumed(seeds: Path, folder: Path, r: Random) -> Case:
    shutil.copytree(seeds / "run", folder / "run")
    last, written = folder / "run" / "checkpoint" / "last.safetensors", folder / "run" / "config.json"
    what = r.random()
    if what < 0.1:
        mutate.special(r.choice([last, written]), r.choice(mutate.SPECIAL))
    elif what < 0.8:
        last.write_bytes(_spoiled_safetensors(last, r))
    else:
        value = json.loads(written.read_text())
        spoiled = {k: v for k, v in value.items() if r.random() < 0.9}
        written.write_text(mutate.json_text(spoiled, r))
    return Case("--resume", "", command("prune", "--resume=run", "--quiet"), folder)


def _opened(name: str, folder: str) -> Callable[[], int]:
    def work() -> int:
        from kerf import console
        from kerf.compress.data.sets import Options, open_data

        def read() -> None:
            data = open_data(name, Options(path=Path(folder), train_batch=4, eval_batch=4, workers=0))
            for part in (data.train, data.val, data.test):
                for images, labels in part.epoch(0, 0) if part else ():
                    assert len(images) == len(labels)
                    assert labels.numel() == 0 or 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes

        return console.guarded("kerf prune", read)

    return work


def cifar(seeds: Path, folder: Path, r: Random) -> Case:
    shutil.copytree(seeds / "cifar", folder / "cifar")
    path = folder / "cifar" / "cifar-10-batches-py" / r.choice(["data_batch_1", "data_batch_3", "test_batch"])
    what = r.random()
    if what < 0.1:
        mutate.special(path, r.choice(mutate.SPECIAL))
    elif what < 0.4:
        path.write_bytes(mutate.spoiled(path.read_bytes(), r))
    else:
        content = pickle.loads(path.read_bytes())
        key = r.choice(list(content))
        content[key] = r.choice([
            [99] * 10, [-1] * 10, [2**40] * 10, [0.5] * 10, ["a"] * 10, [], None, 7, [3] * 9, np.zeros((10, 3072)),
            np.zeros((10, 3071), np.uint8), np.zeros((3, 3072), np.uint8), np.zeros(0, np.uint8), b"x", {"a": 1},
            [b"\xff\xfe"] * 10, [b"a"] * 3, np.full((10, 3072), np.nan), [[1]] * 10, [True] * 10, [None] * 10,
        ])  # fmt: skip
        if r.random() < 0.15:
            content = r.choice([[], 3, {b"labels": [1]}, {}, content[key]])
        path.write_bytes(pickle.dumps(content, protocol=r.choice([2, 4])))
    return Case("CIFAR files", "", _opened("cifar10", "cifar"), folder)


def images(seeds: Path, folder: Path, r: Random) -> Case:
    shutil.copytree(seeds / "images", folder / "images")
    path = folder / "images" / r.choice(["train", "val"]) / "class0" / "0.png"
    what = r.random()
    if what < 0.2:
        mutate.special(path, r.choice(mutate.SPECIAL))
    elif what < 0.5:
        path.write_bytes(mutate.spoiled(path.read_bytes(), r))
    else:
        path.write_bytes(_png(r))
    return Case("image folders", "", _opened("imagenet", "images"), folder)


def _png(r: Random) -> bytes:
    """Odd sizes, and headers that promise more than there is."""
    width, height = r.choice(
        [(5_000_000, 1), (1, 5_000_000), (30000, 30000), (1, 1), (0, 5), (2**31 - 1, 2**31 - 1), (65000, 3)]
    )
    depth, colour = r.choice([(8, 2), (1, 0), (16, 2), (8, 3), (16, 0), (8, 6), (4, 3), (3, 2)])
    row = 1 + (width * depth * {0: 1, 2: 3, 3: 1, 6: 4}[colour] + 7) // 8
    body = zlib.compress(bytes(min(row * height, 20_000_000)), 1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if colour == 3:
        parts.append((b"PLTE", bytes(range(48))))
    if r.random() < 0.2:
        parts.append((b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000))))
    parts += [(b"IDAT", body), (b"IEND", b"")]
    made = b"\x89PNG\r\n\x1a\n"
    for name, data in parts:
        made += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return made


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
    inspected: 30, tuned: 1.5, quantised: 3, pruned: 3, bundle_found: 6, bundle_hashed: 9, records: 10,
    tuned_with_records: 0.3, array: 7, checkpoint: 10, evaluated: 0.7, pickled: 4, config: 6, resumed: 0.7, cifar: 4,
    images: 3, compared: 4,
}  # fmt: skip


# Those that take a moment, of files that are there without training.
QUICK = (inspected, quantised, bundle_found, bundle_hashed, records, array, cifar, images)


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
