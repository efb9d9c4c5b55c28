"""Spoiled files of the training side: checkpoints, configurations, states of runs, images and lists of them."""

import json
import os
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fuzz import mutate
from tests.fuzz.pool import Case, command
from tests.fuzz.seeds import TRAINING, safetensors, with_header

Random = random.Random


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
    if not mutate.damaged(path, r, gone=0.1, broken=0.4):
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
    if not mutate.damaged(path, r, gone=0.2, broken=0.5):
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
