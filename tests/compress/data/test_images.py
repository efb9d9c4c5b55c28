"""Images of every kind that people have come out as the 8-bit RGB that they show."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kerf.compress.data.folders import list_folder
from kerf.compress.data.images import open_rgb
from kerf.compress.data.photographs import Folder
from kerf.errors import BadInput

pytestmark = pytest.mark.quick

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREY, GREY[::-1], GREY.T], axis=-1)


def read(path) -> np.ndarray:
    return np.asarray(open_rgb(path))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("factor", [256, 257])
def test_grey_of_16_bits_is_its_8_bit_copy(tmp_path, suffix, factor):
    Image.fromarray(GREY.astype(np.uint16) * factor).save(tmp_path / f"x.{suffix}")
    assert Image.open(tmp_path / f"x.{suffix}").mode.startswith("I")
    assert np.array_equal(read(tmp_path / f"x.{suffix}"), np.stack([GREY] * 3, axis=-1))


def test_big_endian_and_32_bit_containers(tmp_path):
    Image.frombytes("I;16B", (16, 16), (GREY.astype(">u2") * 257).astype(">u2").tobytes()).save(tmp_path / "b.tif")
    Image.fromarray(GREY.astype(np.int32) * 257).save(tmp_path / "i.tif")
    for name in ("b.tif", "i.tif"):
        assert np.array_equal(read(tmp_path / name)[..., 0], GREY)
    Image.fromarray(GREY.astype(np.int32) * 65537 - 1).save(tmp_path / "large.tif")
    with pytest.raises(BadInput, match=r"large.tif cannot be read as an image: integers from -1 to .*16 bits"):
        read(tmp_path / "large.tif")


def test_8_bits_in_a_32_bit_container_are_not_black(tmp_path):
    Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "x.tif")
    assert np.array_equal(read(tmp_path / "x.tif")[..., 0], GREY)


def test_pgm_of_16_bits(tmp_path):
    """PIL's mode I, and its range is known: a dark image stays dark."""
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "x.pgm")
    assert np.array_equal(read(tmp_path / "x.pgm")[..., 0], GREY)
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "dark.pgm")
    assert read(tmp_path / "dark.pgm").max() == 0


def test_tiff_of_12_bits_is_its_8_bit_copy(tmp_path):
    """As cameras of microscopes write it; two samples in three bytes, which PIL reads and cannot write."""
    pairs = (GREY.astype(np.uint16) << 4).reshape(-1, 2)
    first, second = pairs.T
    data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    # width, height, bits, compression, black is 0, offset, samples, rows, bytes
    tags = {256: 16, 257: 16, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 16, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / "x.tif").write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data)
    assert np.array_equal(read(tmp_path / "x.tif")[..., 0], GREY)


def test_colour_of_16_bits_is_its_8_bit_copy(tmp_path):
    # a PNG of 16 bits a sample, which PIL reads and cannot write
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOUR.astype(np.uint16) * 257)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    assert np.array_equal(read(tmp_path / "x.png"), COLOUR)


def test_floats(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "one.tif")
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "byte.tif")
    for name in ("one.tif", "byte.tif"):
        assert np.array_equal(read(tmp_path / name)[..., 1], GREY)
    Image.fromarray(GREY.astype(np.float32) * 9).save(tmp_path / "wide.tif")
    with pytest.raises(BadInput, match="floats from 0 to 2295"):
        read(tmp_path / "wide.tif")


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_what_the_field_makes_of_them(tmp_path, mode):
    """torchvision's default loader: convert("RGB")."""
    image = Image.fromarray(COLOUR).convert(mode)
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    image.save(tmp_path / f"x.{suffix}")
    expected = np.asarray(Image.open(tmp_path / f"x.{suffix}").convert("RGB"))
    assert np.array_equal(read(tmp_path / f"x.{suffix}"), expected)
    assert expected.std() > 10


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, bytes([0, 90, 200])], ids=["one colour", "by colour"])
def test_transparency_of_a_palette_is_dropped_without_a_warning(tmp_path, transparency):
    image = Image.fromarray(COLOUR).convert("P")
    image.save(tmp_path / "x.png", transparency=transparency)
    assert np.array_equal(read(tmp_path / "x.png"), np.asarray(image.convert("RGB")))


def test_orientation_tags_are_ignored(tmp_path):
    image = Image.fromarray(COLOUR[:8])
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    image.save(tmp_path / "x.png", exif=exif)
    assert read(tmp_path / "x.png").shape == (8, 16, 3)


def test_training_sees_of_16_bits_what_it_sees_of_8(tmp_path):
    random = np.random.default_rng(0)
    for split in ("eight", "sixteen"):
        for c in ("a", "b"):
            (tmp_path / split / c).mkdir(parents=True)
    for i in range(4):
        pixels = random.integers(0, 256, (40, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "eight" / "ab"[i % 2] / f"{i}.png")
        Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "sixteen" / "ab"[i % 2] / f"{i}.png")
    for training in (True, False):
        seen = [
            next(Folder(list_folder(tmp_path, split), 32, 4, 0, training).epoch(1, 2))[0]
            for split in ("eight", "sixteen")
        ]
        assert seen[0].equal(seen[1])
        assert seen[0].std() > 0.1
