"""Bundle: a folder with everything a device needs to run a network.

manifest.json    what it is, for which target and TVM, which engine runs which piece, which kernel computes each layer,
                 SHA-256 of the other files
library.so       compiled code (needs libtvm_runtime, not the compiler); library_1.so … for inputs of other sizes
*.onnx           pieces that a dense engine runs, or the whole network
kernels.cubin    machine code of a GPU, for the source that its library.so holds
weights.npz      packed weights, in the order of the code's parameters
program.bin      what its plans do, for libkerf, which runs bundles without Python (not in a GPU's)
records.jsonl    measurements behind the choice of kernels, if it was tuned
manifest.sig     a signature of the manifest, if somebody signed it
report.json, report.html   what was measured; not hashed, since measuring again may rewrite them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kerf import files, gate
from kerf.deploy.runtime import program_file, signature
from kerf.deploy.runtime.manifest import FORMAT, READ, Contents, Manifest, upgraded
from kerf.deploy.runtime.manifest_check import EXPECTED, check
from kerf.errors import BadInput

MACHINE_CODE = "kernels.cubin"
HASHED = ("weights.npz", "records.jsonl")  # in every bundle


class BundleError(BadInput):
    """A bundle that must not be run, with the reason."""


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of ``folder`` when the block ends well, and vanishes when it fails.

    Raises BundleError, before anything is done, when ``folder`` holds something that is no bundle.
    """
    refuse_foreign(folder)
    with files.replacing_folder(folder) as new:
        yield new


def refuse_foreign(folder: Path) -> None:
    """Raises BundleError unless ``folder`` is absent, empty or a bundle, BadInput where its name is no text."""
    gate.refuse_name(folder)
    if not folder.exists():
        return
    try:
        manifest = folder / "manifest.json"
        ours = not any(folder.iterdir()) or "sha256" in gate.read_json(manifest, dict[str, Any], EXPECTED)
    except (OSError, BadInput):
        ours = False
    if not ours:
        raise BundleError(f"{folder}: exists and is no bundle; give --out another folder")


def write(
    folder: Path,
    contents: Contents,
    libraries: Mapping[str, Callable[[Path], None]],
    weights: Sequence[tuple[str, np.ndarray]],
    models: Mapping[str, bytes],
    records: str,
    code: bytes = b"",
    programs: Sequence[Sequence[program_file.Program]] = (),
) -> None:
    """Fill an empty folder. ``libraries``: file -> what writes that shared library; ``weights``: names and arrays, in
    the order that the steps of ``contents`` count; ``models``: file -> an ONNX model; ``code``: a GPU's machine code;
    ``programs``: of each plan what its pieces do.
    """
    for name, write_library in libraries.items():
        write_library(folder / name)
    for name, model in models.items():
        (folder / name).write_bytes(model)
    # npz holds names like "features.0.0.data" safely only as positions: their order is the parameters' order
    program_file.write_weights(folder / "weights.npz", [array for _, array in weights])
    (folder / "records.jsonl").write_text(records)
    if code:
        (folder / MACHINE_CODE).write_bytes(code)
    if programs:
        program_file.write(folder, contents, programs)
    files = [
        *HASHED,
        *libraries,
        *models,
        *([MACHINE_CODE] if code else []),
        *([program_file.FILE] if programs else []),
    ]
    hashes = {name: sha256(folder / name) for name in files}
    names = [name for name, _ in weights]
    kinds = [types_of(np.asarray(array)) for _, array in weights]
    body = {"format": FORMAT, **contents, "weights": names, "weight_types": kinds, "sha256": hashes}
    (folder / "manifest.json").write_text(json.dumps({**body, "manifest_sha256": _body_sha256(body)}, indent=1) + "\n")


def _body_sha256(body: Mapping[str, Any]) -> str:
    """Of the manifest without this very entry, in canonical form."""
    rest = {k: v for k, v in body.items() if k != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, trusted_key: str | Path | bytes | None = None) -> Manifest:
    """The manifest, every hashed file verified; its signature, too, where a ``trusted_key`` is given.

    Raises FileNotFoundError or BundleError.
    """
    path = folder / "manifest.json"
    gate.refuse_name(folder)
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no bundle (no manifest.json); build one with model_tune.py")
    try:
        text = gate.read_bytes(path, EXPECTED, gate.JSON_BYTES)
        if trusted_key is not None:
            signature.refuse(folder, text, trusted_key)
        manifest = gate.parsed(text, dict[str, Any], str(path), EXPECTED)
        version, hashes, own = manifest["format"], manifest["sha256"], manifest["manifest_sha256"]
    except KeyError as error:
        raise BundleError(f"{path}: not a bundle's manifest (no {error}); build the bundle again") from error
    except BadInput as error:
        raise BundleError(str(error)) from error
    if version not in READ:
        raise BundleError(
            f"{path}: format {version!r:.40}, expected {FORMAT}; build the bundle again with this version"
        )
    if own != _body_sha256(manifest):
        raise BundleError(f"{path}: changed since it was built (SHA-256 differs); build the bundle again")
    try:
        manifest = upgraded(manifest)
        check(manifest, str(path))
    except (BadInput, KeyError, TypeError) as error:
        said = error if isinstance(error, BadInput) else f"{path}: not a bundle's manifest ({error}); build it again"
        raise BundleError(str(said)) from error
    for name in {*HASHED, *hashes, *parts(manifest)}:
        try:
            gate.refuse_special(folder / name, "a bundle's file")
        except FileNotFoundError as error:
            raise BundleError(f"{folder / name}: missing; build the bundle again") from error
        if sha256(folder / name) != hashes.get(name):
            raise BundleError(f"{folder / name}: changed since it was built (SHA-256 differs); build the bundle again")
    return manifest


def parts(manifest: Manifest) -> list[str]:
    """Files that its plans name: libraries and models."""
    libraries = [plan["library"] for plan in manifest["plans"]]
    models = [step.get("file") for plan in manifest["plans"] for step in plan["steps"]]
    return sorted({str(name) for name in (*libraries, *models, manifest["fallback"]) if name})


def read_weights(folder: Path, manifest: Manifest | None = None) -> list[np.ndarray]:
    """In the order that steps count. Raises BundleError for others than the ``manifest`` speaks of: compiled code does
    not look at their sizes.
    """
    try:
        found = gate.read_arrays(folder / "weights.npz")
    except BadInput as error:
        raise BundleError(str(error)) from error
    arrays = [found[key] for key in sorted(found)] if isinstance(found, dict) else [found]
    if manifest is not None:
        said = manifest.get("weight_types", [types_of(a) for a in arrays])
        if len(arrays) != len(manifest["weights"]) or [types_of(a) for a in arrays] != said:
            raise BundleError(f"{folder / 'weights.npz'}: other weights than the manifest says; build the bundle again")
    return arrays


def types_of(array: np.ndarray) -> dict[str, Any]:
    """As a manifest has it."""
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def size_bytes(folder: Path) -> int:
    """What has to be shipped: code, weights, models and the manifest."""
    names = [*parts(read_manifest(folder)), "weights.npz", "manifest.json", MACHINE_CODE, program_file.FILE]
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
