"""Image files in, uint8 arrays out: what lies in folders, and CIFAR's own batches. No splits, no augmentation."""

import pickle
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor

from kerf.compress.data.folders import Listing
from kerf.errors import BadInput
from kerf.failures import printable
from kerf.gate import refuse_special

MOST_ASPECT = 2000  # longer side to shorter; Pillow itself refuses more than 178,956,970 pixels


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The image of a file, or of what was read from it, not decoded yet.

    Raises ValueError naming the file when it is no readable image, also for what is done with the image within.
    """
    try:
        if content is None:
            refuse_special(path, "an image")
        with Image.open(path if content is None else BytesIO(content)) as image:
            _refuse_large(image)
            yield image
    # on broken files PIL raises all of these
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        Image.DecompressionBombError,
        struct.error,
        zlib.error,
    ) as error:
        raise BadInput(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from None


def _refuse_large(image: Image.Image) -> None:
    """Raises BadInput for sizes that no photograph has: resized, they would be an endless strip of gigabytes."""
    width, height = image.size
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise BadInput(f"{width}x{height} pixels; expected sides of at most {MOST_ASPECT}:1")


def rgb(image: Image.Image) -> Image.Image:
    """Decodes to 8-bit RGB; copies only what is not.

    As the field does it (torchvision's default loader): alpha and a palette's transparency are dropped, CMYK is
    converted without a profile, and EXIF's orientation is ignored (but in TIFF, which PIL turns itself). Grey of 16
    bits keeps its upper 8, which PIL does by itself for colour of 16 bits; its own conversion would make every value
    above 255 white. Raises ValueError for integers of more bits and for floats outside [0, 255], whose range nobody
    states.
    """
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    image.info.pop("transparency", None)  # of a palette: PIL would warn that it is dropped
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey of up to 16 bits, or floats of [0, 1] or [0, 255], as uint8."""
    grey = np.asarray(image)
    low, high = float(grey.min()), float(grey.max())
    if grey.dtype.kind == "f":
        if not (low >= 0 and high <= 255):
            raise BadInput(f"floats from {low:g} to {high:g}; expected [0, 1] or [0, 255]: store it as 8 or 16 bits")
        return np.round(grey * (255 if high <= 1 else 1)).astype(np.uint8)
    if not (low >= 0 and high <= 0xFFFF):
        raise BadInput(f"integers from {low:.0f} to {high:.0f}; expected 16 bits: store it as 8 or 16 bits")
    return (grey.astype(np.uint16) >> (_bits(image, high) - 8)).astype(np.uint8)


def _bits(image: Image.Image, high: float) -> int:
    """How many bits the file's integers have; those of 32, as some programs write TIFF, hold 8 or 16."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two have 16 there
        return 8 if high <= 255 else 16
    return int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0]) if isinstance(image, TiffImageFile) else 16


def open_rgb(path: Path) -> Image.Image:
    """Raises ValueError naming the file when it is no readable image."""
    with opened(path) as image:
        return rgb(image)


def decode(listing: Listing, size: int, workers: int) -> Tensor:
    """Decodes every file once, in threads (PIL releases the GIL): (n, 3, size, size) uint8.

    Small images only: 60,000 of 32x32 are 184 MB. Images of another size are resized.
    """
    out = np.empty((len(listing.names), size, size, 3), np.uint8)

    def one(index: int) -> None:
        image = open_rgb(listing.root / listing.names[index])
        out[index] = np.asarray(
            image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
        )

    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(one, range(len(listing.names)), chunksize=64))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


CIFAR_BYTES = 1 << 30  # five times the largest of its files


class _ArraysOnly(pickle.Unpickler):
    """Reads CIFAR's pickles, which hold numpy arrays, bytes and lists; refuses every other type."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda *_: np.empty(0, np.uint8)  # what numpy's own makes; the file's shape comes with its bytes
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in the old protocols
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"holds {module}.{name}, which CIFAR files do not")


def read_cifar_batch(path: Path, label_key: str, classes: int) -> tuple[Tensor, list[int], list[str]]:
    """One file of cifar-10-batches-py or cifar-100-python: images (n, 3, 32, 32) uint8, labels, file names.

    Raises FileNotFoundError, or ValueError when it is not such a file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no CIFAR batch at {path}")
    refuse_special(path, "a CIFAR batch", CIFAR_BYTES)
    try:
        content = _ArraysOnly(BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = content[b"data"], list(content[label_key.encode()])
        names = [name.decode() for name in content.get(b"filenames", [])]
    except Exception as error:  # a spoiled pickle makes Python's raise anything
        raise BadInput(f"{path} is not a CIFAR batch: {printable(error)}") from None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        what = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise BadInput(f"{path} is not a CIFAR batch: its data are {what}, expected uint8 (images, 3072)")
    if not all(isinstance(label, int | np.integer) and 0 <= label < classes for label in labels):
        raise BadInput(f"{path} has labels that are none of 0 to {classes - 1}")
    if len(labels) != len(pixels) or len(names) not in (0, len(pixels)):
        raise BadInput(f"{path} has {len(pixels)} images, {len(labels)} labels and {len(names)} file names")
    images = torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32))
    return images, [int(label) for label in labels], names or [f"{path.name}/{i}" for i in range(len(labels))]
