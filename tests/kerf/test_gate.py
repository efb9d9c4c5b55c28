"""Files are looked at before they are opened, and nothing is allocated that they merely claim."""

import os
import socket
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest

from kerf import gate
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def made(path, kind):
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as listening:
            patch.chdir(path.parent)  # the names of sockets may not be long
            listening.bind(path.name)
    return path


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device", "a socket"])
@pytest.mark.parametrize(
    "read", [gate.read_bytes, lambda p, e: gate.read_json(p, dict, e), lambda p, e: gate.read_arrays(p)]
)
def test_what_is_no_file_is_refused_before_it_is_opened(kind, read, tmp_path):
    path = made(tmp_path / "x", kind)
    with pytest.raises(BadInput, match=f"x: {kind}; expected "):
        read(path, "a file")


def test_a_file_of_too_many_bytes_is_refused_with_both_numbers(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(gate.JSON_BYTES + 1)  # a hole: no byte of it is on the disk
    with pytest.raises(BadInput, match=r"67,108,865 bytes; expected JSON, of at most 67,108,864"):
        gate.read_json(path, dict, "JSON")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "is not JSON (nested too deep)"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "is not JSON (nested too deep)"),
        ('{"a": NaN}', "is not JSON (it holds NaN)"),
        ('{"a": 1', "is not JSON ("),
        ("\xff\xfe", "is not JSON ("),
        ("[]", "holds a list, expected an object"),
    ],
)
def test_json_of_another_form_is_one_line(text, said, tmp_path):
    (tmp_path / "x").write_bytes(text.encode("latin1"))
    with pytest.raises(BadInput) as error:
        gate.read_json(tmp_path / "x", dict[str, Any], "y")
    assert said in str(error.value)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_where_another_type_stands_is_said():
    with pytest.raises(BadInput, match=r"m: Expected `int`, got `str` - at `\$\[...\]\[1\]`; expected z"):
        gate.converted({"a": [1, "x"]}, dict[str, list[int]], "m", "z")


def header(shape, kind="<f4"):
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", [(2**40,), (10**9, 10**9), (-1,), (2**62, 2**62)])
@pytest.mark.parametrize("archived", [False, True])
def test_an_array_that_claims_more_than_there_is_allocates_nothing(shape, archived, tmp_path):
    path = tmp_path / "x.npy"
    content = header(shape) + bytes(64)
    path.write_bytes(content)
    if archived:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x.npy", content)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"not an \.npy array, nor an \.npz of arrays"):
            gate.read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_bomb_of_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", header((20_000_000,)) + bytes(80_000_000))
    content = (tmp_path / "x.npz").read_bytes()
    grown = content.replace(
        (80_000_000 + len(header((20_000_000,)))).to_bytes(4, "little"), (2**32 - 2).to_bytes(4, "little")
    )
    (tmp_path / "x.npz").write_bytes(grown)
    with pytest.raises(BadInput, match="claims 4,294,967,294 bytes"):
        gate.read_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["|O", "|O8"])
def test_objects_are_refused(kind, tmp_path):
    (tmp_path / "x.npy").write_bytes(header((2,), kind) + bytes(64))
    with pytest.raises(BadInput, match="objects"):
        gate.read_arrays(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.float32(3), np.zeros((0, 4), ">i2"), np.array(["a"])]
)
def test_whatever_numpy_writes_is_read(array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    found = gate.read_arrays(tmp_path / "x.npy")
    assert found.dtype == np.asarray(array).dtype
    np.testing.assert_array_equal(found, array)
    np.savez_compressed(tmp_path / "x.npz", a=array, b=np.zeros(1_000_000))
    both = gate.read_arrays(tmp_path / "x.npz")
    np.testing.assert_array_equal(both["a"], array)
    assert both["b"].shape == (1_000_000,)


@pytest.mark.parametrize("name", ["\udcff.onnx", "a\udcfe b"])
def test_a_name_that_is_no_text_is_one_line(name, tmp_path):
    with pytest.raises(BadInput, match="its name is not UTF-8") as error:
        gate.refuse_name(tmp_path / name)
    assert str(error.value).isprintable()
    gate.refuse_name(tmp_path / "é😀.onnx")
