"""CIFAR files and images that claim what they are not."""

import os
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from kerf.compress.data.images import open_rgb, read_cifar_batch
from kerf.errors import BadInput

PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({b"data": PIXELS, b"labels": [0, 99]}, "labels that are none of 0 to 9"),
        ({b"data": PIXELS, b"labels": [0, -1]}, "labels that are none of 0 to 9"),
        ({b"data": PIXELS, b"labels": [0, 0.5]}, "labels that are none of 0 to 9"),
        ({b"data": PIXELS, b"labels": [0]}, "2 images, 1 labels"),
        ({b"data": PIXELS, b"labels": [0, 1], b"filenames": [b"a"]}, "2 labels and 1 file names"),
        ({b"data": PIXELS.astype(float), b"labels": [0, 1]}, r"its data are float64 \(2, 3072\)"),
        ({b"data": PIXELS[:, :-1], b"labels": [0, 1]}, r"its data are uint8 \(2, 3071\)"),
        ({b"data": b"x", b"labels": [0, 1]}, "its data are bytes"),
        ([], "is not a CIFAR batch"),
    ],
)
def test_a_batch_is_held_to_what_cifar_is(content, said, tmp_path):
    (tmp_path / "b").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(BadInput, match=said) as error:
        read_cifar_batch(tmp_path / "b", "labels", 10)
    assert "\n" not in str(error.value)


def test_a_pickle_that_claims_terabytes_allocates_nothing(tmp_path):
    bomb = pickle.dumps({b"data": PIXELS}, protocol=2).replace(b"K\x00\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85")
    (tmp_path / "b").write_bytes(bomb)
    (tmp_path / "c").write_bytes(b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x")
    tracemalloc.start()
    try:
        for name in "bc":
            with pytest.raises(BadInput):
                read_cifar_batch(tmp_path / name, "labels", 10)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_pipe_is_neither_a_batch_nor_an_image(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises(BadInput, match="a named pipe; expected a CIFAR batch"):
        read_cifar_batch(tmp_path / "p.png", "labels", 10)
    with pytest.raises(BadInput, match="a named pipe"):
        open_rgb(tmp_path / "p.png")


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (5_000_000, 1, "sides of at most 2000:1"),
        (1, 5_000_000, "sides of at most 2000:1"),
        (13_400, 13_400, "exceeds limit of 178956970 pixels"),
    ],
)
def test_an_image_of_sizes_that_none_has_is_refused_before_it_is_decoded(tmp_path, width, height, said):
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    made = b"\x89PNG\r\n\x1a\n"
    for name, data in parts:
        made += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "x.png").write_bytes(made)
    with pytest.raises(BadInput, match=said):
        open_rgb(tmp_path / "x.png")
