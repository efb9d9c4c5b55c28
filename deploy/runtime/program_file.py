"""program.bin: what a bundle does, for libkerf, which reads neither JSON nor zip archives and runs no virtual machine.

Little-endian, from front to back: numbers of 4 or 8 bytes, texts as their length and UTF-8; its last 32 bytes are the
SHA-256 of all before them. It names the bundle's other files with their sizes and hashes, and where in weights.npz
(stored, not compressed) each array lies. runtime/c/src/program.c reads what write() writes; VERSION grows with either.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from kerf.deploy.runtime.manifest import PlanEntry, Tensor, is_own

FILE = "program.bin"
MAGIC, VERSION = b"KERFPROG", 1
ALIGNED = 64  # bytes: where arrays start in weights.npz, so that they can be used where the file is mapped
NONE = 0xFFFFFFFF  # for a rank that is not known
# numpy's name -> ONNX's number of the type (TensorProto.DataType), by which kerf.h knows it
TYPES = {
    **{"float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10},
    **{"float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16},
    **{"float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20},
}


class Root(IntEnum):
    """Whose memory a tensor lies in."""

    INPUT = 0
    WEIGHT = 1
    STORAGE = 2
    CONSTANT = 3


@dataclass(frozen=True)
class Lying:
    """A tensor: ``offset`` bytes into the ``index``-th input, weight, storage or constant of its piece."""

    root: Root
    index: int
    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """``function``: its symbol in the library; ``arguments``: ("tensor", number), ("int", value), ("float", value)."""

    function: str
    arguments: Sequence[tuple[str, int | float]]


@dataclass(frozen=True)
class Program:
    """Of one piece. ``storages``: sizes in bytes; ``results``: numbers of tensors. ``refusal``: why libkerf cannot run
    it, else "".
    """

    storages: Sequence[int] = ()
    constants: Sequence[bytes] = ()
    tensors: Sequence[Lying] = ()
    calls: Sequence[Call] = ()
    results: Sequence[int] = ()
    refusal: str = ""


@dataclass
class _Writer:
    parts: list[bytes] = field(default_factory=list)

    def u32(self, *numbers: int) -> None:
        self.parts.append(struct.pack(f"<{len(numbers)}I", *numbers))

    def i64(self, *numbers: int) -> None:
        self.parts.append(struct.pack(f"<{len(numbers)}q", *numbers))

    def text(self, text: str | None) -> None:
        self.raw((text or "").encode())

    def raw(self, contents: bytes) -> None:
        self.u32(len(contents))
        self.parts.append(contents)

    def texts(self, texts: Sequence[str]) -> None:
        self.u32(len(texts))
        for text in texts:
            self.text(text)

    def tensor(self, dtype: str, shape: Sequence[int | None] | None) -> None:
        """0 for a type that C knows nothing of; -1 for a size that is open."""
        self.u32(TYPES.get(dtype, 0), NONE if shape is None else len(shape))
        self.i64(*(-1 if size is None else size for size in shape or ()))

    def named(self, tensors: Mapping[str, Tensor]) -> None:
        self.u32(len(tensors))
        for name, tensor in tensors.items():
            self.text(name)
            self.tensor(tensor["dtype"], tensor["shape"])


def write(folder: Path, contents: Mapping[str, Any], programs: Sequence[Sequence[Program]]) -> None:
    """Of the bundle whose other files are in ``folder``; ``contents``: what its manifest says; ``programs``: of each
    plan, of its pieces as its library counts them.
    """
    out = _Writer()
    out.text(contents["target"])
    out.u32(contents["threads"])
    plans: Sequence[PlanEntry] = contents["plans"]
    steps = [step for plan in plans for step in plan["steps"]]
    named = {*(plan["library"] for plan in plans), *(step.get("file") for step in steps), contents["fallback"]}
    files = ["weights.npz", *sorted(str(name) for name in named if name)]
    out.u32(len(files))
    for name in files:
        out.text(name)
        out.i64((folder / name).stat().st_size)
        out.parts.append(hashlib.sha256((folder / name).read_bytes()).digest())
    places = weight_places(folder / "weights.npz")
    out.u32(len(places))
    for offset, size in places:
        out.i64(offset, size)
    out.named(contents["inputs"])
    out.named(contents["outputs"])
    out.text(contents["fallback"])
    out.u32(len(plans))
    for plan, own in zip(plans, programs, strict=True):
        _plan(out, plan, own, contents)
    body = MAGIC + struct.pack("<I", VERSION) + b"".join(out.parts)
    (folder / FILE).write_bytes(body + hashlib.sha256(body).digest())


def _plan(out: _Writer, plan: PlanEntry, programs: Sequence[Program], contents: Mapping[str, Any]) -> None:
    needs = plan.get("needs") or contents["needs"]
    out.text(plan.get("target") or contents["target"])
    out.text(needs["machine"])
    out.texts(needs["features"])
    out.u32(len(plan["inputs"]))
    for name, shape in plan["inputs"].items():
        out.u32(list(contents["inputs"]).index(name), len(shape))
        out.i64(*shape)
    out.text(plan["library"])
    out.named(plan["values"])
    at = {name: i for i, name in enumerate(plan["values"])}
    out.u32(len(plan["steps"]))
    for step in plan["steps"]:
        out.text(step["engine"])
        for names in (step["inputs"], step["outputs"]):
            out.u32(len(names), *(at[name] for name in names))
        if is_own(step):
            out.u32(len(step["weights"]), *step["weights"])
            _program(out, programs[int(step["function"].lstrip("_") or 0)])
        else:
            out.text(step["file"])


def _program(out: _Writer, program: Program) -> None:
    out.text(program.refusal)
    out.u32(len(program.storages))
    out.i64(*program.storages)
    out.u32(len(program.constants))
    for constant in program.constants:
        out.raw(constant)
    out.u32(len(program.tensors))
    for lying in program.tensors:
        out.u32(lying.root, lying.index)
        out.i64(lying.offset)
        out.tensor(lying.dtype, lying.shape)
    out.u32(len(program.calls))
    for call in program.calls:
        out.text(call.function)
        out.u32(len(call.arguments))
        for kind, value in call.arguments:
            out.u32(("tensor", "int", "float").index(kind))
            out.parts.append(struct.pack("<d" if kind == "float" else "<q", value))
    out.u32(len(program.results), *program.results)


def write_weights(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """An .npz of the arrays, by their positions, as they are in memory: each starts at a multiple of ALIGNED bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, array in enumerate(arrays):
            name = f"{i:04d}.npy"
            start = archive.fp.tell() + _LOCAL.size + len(name)  # type: ignore[union-attr]
            entry = zipfile.ZipInfo(name)
            # an extra field of zeros, as zipalign writes them; numpy pads an array's own header to 64 bytes
            entry.extra = struct.pack("<HH", 0xD935, room := -(start + 4) % ALIGNED) + bytes(room)
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


_LOCAL = struct.Struct("<4s5H3I2H")  # a file's header within a zip archive, without its name


def weight_places(path: Path) -> list[tuple[int, int]]:
    """(first byte, bytes) of every array of a file of write_weights, in their order."""
    found = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for entry in sorted(archive.infolist(), key=lambda e: e.filename):
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
                shape, _, dtype = read(file)
                header = file.tell()
            raw.seek(entry.header_offset)
            *_, name, extra = _LOCAL.unpack(raw.read(_LOCAL.size))
            start = entry.header_offset + _LOCAL.size + name + extra + header
            found.append((start, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize))
    return found
