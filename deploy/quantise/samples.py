"""Calibration: what a network is shown so that the ranges of its tensors are known. Arrays of a file, or images.

A file: .npz of arrays by input name, or .npy for a network of one input; along the first axis lie as many as there are
samples, times the batch that the network fixes. Images: as kerf.compress.data prepares them for evaluation: the shorter
side to size / CROP, then the centre, (RGB / 255 - mean) / std; those of the network's size are not resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerf import gate
from kerf.deploy.frontend.onnx_graph import Value
from kerf.deploy.quantise.calibration import Calibration
from kerf.errors import BadInput
from kerf.images import CROP, SUFFIXES

Feed = dict[str, np.ndarray]  # a sample: an array for each input


class Samples:
    """Feeds that can be gone through more than once, made when they are needed."""

    def __init__(self, keys: Sequence[Any], make: Callable[[Any], Feed]):
        self._keys, self._make = keys, make

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Feed]:
        return map(self._make, self._keys)


def read(asked: Calibration, inputs: Sequence[Value]) -> Samples:
    """Of a network with these ``inputs``; of more than ``asked.images``, some that lie evenly among them.

    Raises FileNotFoundError, ImportError where images are to be read without Pillow, and BadInput, naming the file and
    what is wrong: no images, no arrays of these names and sizes, NaN.
    """
    if asked.path.is_dir():
        return _images(asked, inputs)
    if not asked.path.is_file():
        raise FileNotFoundError(f"--calibration {asked.path}: no such file or folder; give images or an .npz of arrays")
    return _arrays(asked, inputs)


def evenly(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` of ``count``, from the first on at equal distances."""
    return [i * count // min(count, most) for i in range(min(count, most))]


def _arrays(asked: Calibration, inputs: Sequence[Value]) -> Samples:
    arrays = _loaded(asked.path, inputs)
    counts = {}
    for value in inputs:
        counts[value.name] = _count(f"--calibration {asked.path}: array {value.name!r}", arrays[value.name], value)
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise BadInput(f"--calibration {asked.path}: {said}; expected as many samples of each input")
    count = counts[inputs[0].name]

    def feed(index: int) -> Feed:
        return {name: array.reshape(count, -1, *array.shape[1:])[index] for name, array in arrays.items()}

    return Samples(evenly(count, asked.images), feed)


def _count(where: str, array: np.ndarray, value: Value) -> int:
    """How many samples of an input an array holds. Raises BadInput, beginning with ``where``."""
    if str(array.dtype) != value.dtype:
        raise BadInput(f"{where} is of {array.dtype}; the network takes {value.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{where} holds NaN or infinity; calibration needs finite numbers")
    if not value.shape:
        raise BadInput(f"{where}: the network's input has no axes, or nobody knows how many; it cannot be calibrated")
    batch, sizes = value.shape[0] or 1, value.shape[1:]
    fits = array.ndim == len(value.shape) and all(a in (None, b) for a, b in zip(sizes, array.shape[1:]))
    if not fits or not array.size or len(array) % batch:
        said = "x".join("?" if size is None else str(size) for size in sizes)
        many = "any number" if batch == 1 else f"a multiple of {batch}"
        raise BadInput(f"{where} is {'x'.join(map(str, array.shape))}; expected {many} of samples x {said}")
    return len(array) // batch


def _loaded(path: Path, inputs: Sequence[Value]) -> Mapping[str, np.ndarray]:
    try:
        found = gate.read_arrays(path)
    except BadInput as error:
        raise BadInput(f"--calibration {error}") from error
    arrays = {inputs[0].name: found} if isinstance(found, np.ndarray) else found
    names = [value.name for value in inputs]
    if set(arrays) != set(names):
        raise BadInput(
            f"--calibration {path}: arrays for {', '.join(arrays) or 'nothing'}; the network's inputs are "
            f"{', '.join(names)}: give an array by each of these names"
        )
    return arrays


def _images(asked: Calibration, inputs: Sequence[Value]) -> Samples:
    files = sorted(p for p in asked.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(asked.path).parts)]
    if not files:
        raise BadInput(f"--calibration {asked.path}: no images in it; expected {' '.join(sorted(SUFFIXES))}")
    where = f"--calibration {asked.path}: images, but"
    if len(inputs) != 1:
        raise BadInput(f"{where} the network has {len(inputs)} inputs; give an .npz with an array for each")
    (value,) = inputs
    shape = value.shape or ()
    if value.dtype != "float32" or len(shape) != 4 or shape[0] not in (None, 1) or shape[1] not in (1, 3):
        sizes = "x".join("?" if d is None else str(d) for d in shape) or "unknown"
        raise BadInput(
            f"{where} input {value.name!r} is {value.dtype} {sizes}, not float32 1x3xHxW (or 1x1xHxW); give an .npz"
        )
    channels, height, width = (size or 0 for size in shape[1:])
    if not (height and width):
        raise BadInput(f"{where} input {value.name!r} leaves their size open: give --shape {value.name}=1x3x224x224")
    mean, std = (np.array(v, np.float32) for v in (asked.mean, asked.std))
    if len(mean) > channels:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)  # grey: of all channels together

    def feed(path: Path) -> Feed:
        pixels = _pixels(path, "RGB" if channels == 3 else "L", (width, height)).reshape(height, width, channels)
        image = (pixels.astype(np.float32) / 255 - mean) / std
        return {value.name: np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)}

    return Samples([files[i] for i in evenly(len(files), asked.images)], feed)


def _pixels(path: Path, mode: str, size: tuple[int, int]) -> np.ndarray:
    """(height, width[, 3]) uint8, resized and cropped to ``size``, (width, height)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "calibration by images needs Pillow: pip install pillow; or give an .npz of arrays"
        ) from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise BadInput(f"{path}: pixels of mode {image.mode}; expected 8 bits: store it as 8 bits")
            found = image.convert(mode)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # PIL raises all of these
        raise BadInput(f"{path} cannot be read as an image ({error}); remove it, or give other images") from error
    if found.size != size:
        share = max(side / (CROP * own) for side, own in zip(size, found.size))
        wide, high = (max(round(own * share), side) for own, side in zip(found.size, size))
        left, top = (wide - size[0]) // 2, (high - size[1]) // 2
        found = found.resize((wide, high), Image.Resampling.BILINEAR)
        found = found.crop((left, top, left + size[0], top + size[1]))
    return np.asarray(found)
