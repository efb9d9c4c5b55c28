"""Bundle: a folder with everything a device needs to run a network.

manifest.json    what it is, for which target and TVM, which kernel computes each layer, SHA-256 of the other files
library.so       compiled code (needs libtvm_runtime, not the compiler)
weights.npz      packed weights, in the order of the code's parameters
records.jsonl    measurements behind the choice of kernels, if it was tuned
report.json, report.html   what was measured; not hashed, since measuring again may rewrite them
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

FORMAT = 1
HASHED = ("library.so", "weights.npz", "records.jsonl")


class BundleError(ValueError):
    """A bundle that must not be run, with the reason."""


def save(folder: Path, manifest: dict, write_library, packed: dict[str, np.ndarray], records: str) -> Path:
    """Write the bundle beside ``folder``, then put it in place; an older bundle is replaced whole or not at all.

    ``write_library(path)`` writes the shared library.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / "bundle"
        new.mkdir()
        write_library(new / "library.so")
        # npz holds names like "features.0.0.data" safely only as positions: their order is the parameters' order
        np.savez(new / "weights.npz", **{f"{i:04d}": a for i, a in enumerate(packed.values())})
        (new / "records.jsonl").write_text(records)
        hashes = {name: sha256(new / name) for name in HASHED}
        body = {"format": FORMAT, **manifest, "weights": list(packed), "sha256": hashes}
        (new / "manifest.json").write_text(json.dumps(body, indent=1) + "\n")
        if folder.exists():
            if not (folder / "manifest.json").exists() and any(folder.iterdir()):
                raise BundleError(f"{folder}: exists and is no bundle; give --out another folder")
            shutil.move(folder, Path(temporary) / "old")
        shutil.move(new, folder)
    return folder


def read_manifest(folder: Path) -> dict:
    """The manifest, every hashed file verified. Raises FileNotFoundError or BundleError."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no bundle (no manifest.json); build one with model_tune.py")
    try:
        manifest = json.loads(path.read_text())
        version, hashes = manifest["format"], manifest["sha256"]
    except (ValueError, KeyError) as error:
        raise BundleError(f"{path}: not a bundle's manifest ({error}); build the bundle again") from error
    if version != FORMAT:
        raise BundleError(f"{path}: format {version}, expected {FORMAT}; build the bundle again with this version")
    for name in HASHED:
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: missing; build the bundle again")
        if sha256(folder / name) != hashes.get(name):
            raise BundleError(f"{folder / name}: changed since it was built (SHA-256 differs); build the bundle again")
    return manifest


def read_weights(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        return [arrays[key] for key in sorted(arrays.files)]


def size_bytes(folder: Path) -> int:
    """What has to be shipped: library, weights and manifest."""
    return sum((folder / name).stat().st_size for name in ("library.so", "weights.npz", "manifest.json"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
