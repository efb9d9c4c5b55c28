"""Ways to spoil a file: bytes, JSON values, archives of arrays, and things that are no files."""

import io
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Random = random.Random
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**64, 10**30, 0.5, -0.0, 1e308, "", "x", "0", "1e999", "../x"),
    *(
        "/etc/passwd",
        "NaN",
        "[bold]x[/bold]",
        "\x1b[31mred",
        "a\nb",
        "\u202egnp",
        "<script>alert(1)</script>",
        "é" * 300,
    ),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {"b": {"c": []}}}, float("nan"), float("inf")),
]
SPECIAL = ("fifo", "folder", "zero", "full", "empty", "dangling", "loop", "socket")


def flip(data: bytes, r: Random) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice([1, 1, 2, 8, 64])):
        if out:
            out[r.randrange(len(out))] ^= 1 << r.randrange(8)
    return bytes(out)


def cut(data: bytes, r: Random) -> bytes:
    return data[: r.randrange(len(data) + 1)]


def splice(data: bytes, r: Random) -> bytes:
    """A piece of it somewhere else, or zeros, or noise."""
    a, b = sorted(r.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + 4096)
    piece = r.choice([data[a:b], bytes(b - a), r.randbytes(min(b - a, 64)), b"\xff" * 8])
    at = r.randrange(len(data) + 1)
    return data[:at] + piece + data[at + r.choice([0, len(piece)]) :]


def head(data: bytes, r: Random) -> bytes:
    """Near the beginning, where sizes and names are."""
    out = bytearray(data)
    for _ in range(r.choice([1, 2, 4])):
        if out:
            out[r.randrange(min(len(out), 200))] = r.choice([0, 1, 0x7F, 0x80, 0xFF, r.randrange(256)])
    return bytes(out)


def prefixed(data: bytes, r: Random) -> bytes:
    return r.choice(
        [b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04", b"{", b"version https://git-lfs", b"\x7fELF"]
    ) + (data if r.random() < 0.5 else b"")


def spoiled(data: bytes, r: Random) -> bytes:
    return r.choice([flip, flip, cut, splice, head, prefixed])(data, r)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Of every value within a JSON value."""
    found = [at]
    if isinstance(value, dict):
        found += [p for k, v in value.items() for p in places(v, (*at, k))]
    elif isinstance(value, list):
        found += [p for i, v in enumerate(value[:50]) for p in places(v, (*at, i))]
    return found


def spoiled_json(value: Any, r: Random) -> Any:
    """A copy, with one to three values of other types, sizes, or gone."""
    value = json.loads(json.dumps(value))
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        at = r.choice(places(value))
        if not at:
            if r.random() < 0.2:
                return r.choice(STRANGE)
            continue
        inner = value
        for step in at[:-1]:
            inner = inner[step]
        what = r.random()
        if what < 0.25:
            del inner[at[-1]]
        elif what < 0.35 and isinstance(inner, dict):
            inner[r.choice(["x", "", "__class__", "é"])] = inner.pop(at[-1])
        elif what < 0.5 and isinstance(inner[at[-1]], int | float):
            inner[at[-1]] = r.choice([-1, 0, 2**40, 10**18, -(2**63), 1e300, inner[at[-1]] + 1])
        else:
            inner[at[-1]] = r.choice(STRANGE)
    return value


def json_text(value: Any, r: Random) -> str:
    """As text, at times no JSON: deep, doubled keys, cut."""
    text = json.dumps(value)
    what = r.random()
    if what < 0.05:
        return "[" * r.choice([100, 5000, 200000])
    if what < 0.1:
        depth = r.choice([100, 5000, 100000])
        return '{"a":' * depth + "1" + "}" * depth
    if what < 0.15:
        return text[: r.randrange(len(text) + 1)]
    if what < 0.18:
        return text + text
    if what < 0.2:
        return "\ufeff" + text
    return text


def npy_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npy(r: Random, shape: tuple[int, ...] = (1, 3, 32, 32), version: int = 1) -> bytes:
    """An array's file, its header at times of another shape or type than its data."""
    kinds = [
        "<f4",
        "<f8",
        ">f4",
        "<f2",
        "<i4",
        "|b1",
        "<c8",
        "<U5",
        "|O",
        "|S3",
        "<M8[s]",
        [("a", "<f4"), ("b", "<i8")],
    ]
    kind = r.choice(["<f4"] * 6 + kinds)
    sizes = r.choice(
        [shape] * 6
        + [
            (),
            (0,),
            (1,),
            shape[:-1],
            (2**62,),
            (10**9, 10**9),
            (-1, 3, 32, 32),
            (1, 3, 32, 2**40),
            (1,) * 40,
            (0, 2**60),
        ]
        + [(2**31, 1, 1, 1), (0, 3, 32, 32)]
    )
    header = {"descr": kind, "fortran_order": r.random() < 0.2, "shape": sizes}
    text = repr(header)
    if r.random() < 0.15:
        text = r.choice(
            ["{}", "[" * 5000, "(" * 200, text[:-5], text.replace("descr", "desk"), "x" * 60000, "1" * 9999]
        )
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    data = text.encode()
    version = r.choice([1, 1, 1, 2, 3, 9])
    length = len(data) if r.random() < 0.9 else r.choice([0, 65535, 2**31])
    size = (length % 2**16).to_bytes(2, "little") if version == 1 else length.to_bytes(4, "little")
    body = np.random.default_rng(r.randrange(99)).standard_normal(int(np.prod(shape))).astype("<f4").tobytes()
    body = body if r.random() < 0.7 else body[: r.randrange(len(body))]
    return b"\x93NUMPY" + bytes([version, 0]) + size + data + body


def npz(data: bytes, r: Random, values: bool = True) -> bytes:
    """An archive with one member less, of another name or form or, where ``values`` may change, of spoiled bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        victim = r.choice(names)
        for name in names:
            content = old.read(name)
            if name == victim:
                what = r.random()
                if what < 0.2:
                    continue
                content = npy(r, (4, 4)) if what < 0.6 or not values else spoiled(content, r)
                name = r.choice([name, name, name, "x.npy", "../x.npy", "é.npy", name[:-4]])
            new.writestr(name, content)
    made = out.getvalue()
    return spoiled(made, r) if r.random() < 0.2 else made


def special(path: Path, what: str) -> None:
    """Something in the place of the file that is none."""
    if path.is_dir():
        raise ValueError(path)
    path.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        import socket

        before = os.getcwd()
        os.chdir(path.parent)  # the names of sockets may not be long
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(before)
    elif what == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"zero": "/dev/zero", "full": "/dev/full", "dangling": "nowhere", "loop": path.name}[what])


def damaged(path: Path, r: Random, gone: float, broken: float) -> bool:
    """What befalls any file: by a chance below ``gone`` it is no file any more, below ``broken`` its bytes are spoiled.
    Else it is left to a kind's own faults, and the answer is False.
    """
    chance = r.random()
    if chance < gone:
        special(path, r.choice(SPECIAL))
    elif chance < broken:
        path.write_bytes(spoiled(path.read_bytes(), r))
    return chance < broken
