"""The data sets: what is trained on, what "best" is chosen on, what is reported.

train and val are two parts of the training data, divided once by a constant seed, so that no run, whatever its own
seed, has trained on another's validation images. test is the data set's own test part and decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kerf.compress.data import download
from kerf.compress.data.batches import Batches, InMemory
from kerf.compress.data.folders import Listing, alone, check_alike, list_folder, relabelled
from kerf.compress.data.images import decode, read_cifar_batch
from kerf.compress.data.photographs import Folder
from kerf.errors import BadInput

SPLIT_SEED = 0
Images = tuple[Tensor, Sequence[int] | Tensor, Sequence[str]]  # pixels (n, 3, s, s) uint8, labels, names


@dataclass(frozen=True)
class Data:
    name: str
    num_classes: int
    image_size: int
    train: Batches | None  # None: only an evaluation split was found
    val: Batches | None
    test: Batches
    notes: tuple[str, ...] = ()  # what of the folders was left out, a line each


@dataclass(frozen=True)
class Options:
    """How a data set is to be opened. `subset` keeps that many training and test images, for smoke runs."""

    path: Path | None = None
    train_batch: int = 256
    eval_batch: int = 256
    workers: int = 2
    image_size: int | None = None
    num_classes: int | None = None
    subset: int | None = None
    bad_images: str = "fatal"  # or "skip": leave files that are no images out, naming each
    dali_device: str | None = None  # decode with NVIDIA DALI there: "cpu" or "cuda:0"


def split_order(count: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation part: a tenth, at most 10,000, is held out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = min(max(1, count // 10), 10_000)
    return order[held_out:], order[:held_out]


def evaluation_order(count: int, subset: int | None) -> Tensor:
    """File order; a subset is drawn across it, since folders list one class after the other."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)) if subset else torch.arange(count)


def _in_memory(
    name: str,
    classes: int,
    train: Images,
    test: Images,
    options: Options,
    flip: bool = True,
    notes: tuple[str, ...] = (),
) -> Data:
    def part(source: Images, index: Tensor, training: bool) -> InMemory:
        pixels, labels, names = source
        index = index[: options.subset]
        size = options.train_batch if training else options.eval_batch
        chosen = tuple(names[i] for i in index.tolist())
        return InMemory(pixels[index], torch.as_tensor(labels)[index], chosen, size, training, flip)

    fit, val = split_order(len(train[1]))
    held = evaluation_order(len(test[1]), options.subset)
    side = test[0].shape[-1]
    return Data(name, classes, side, part(train, fit, True), part(train, val, False), part(test, held, False), notes)


def digits(options: Options) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey made 32x32 RGB; 360 of them are the test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
    pixels = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    labels = torch.from_numpy(bunch.target)

    def part(index: Tensor) -> Images:
        return pixels[index], labels[index], tuple(f"digits/{i}" for i in index.tolist())

    # a mirrored digit is another sign, so there is no flip
    return _in_memory("digits", 10, part(order[360:]), part(order[:360]), options, flip=False)


def synthetic(options: Options) -> Data:
    """Noise around one random image per class: shapes and speed without files, and a loss that can fall."""
    size, classes = options.image_size or 32, options.num_classes or 10
    random = torch.Generator().manual_seed(SPLIT_SEED)
    coarse = torch.rand(classes, 3, 4, 4, generator=random)

    def part(count: int, name: str) -> Images:
        labels = torch.randint(classes, (count,), generator=random)
        pixels = F.interpolate(coarse[labels], size=(size, size), mode="nearest") * 160
        noise = torch.randint(96, pixels.shape, generator=random, dtype=torch.uint8)
        return pixels.to(torch.uint8) + noise, labels, tuple(f"{name}/{i}" for i in range(count))

    return _in_memory("synthetic", classes, part(640, "train"), part(128, "test"), options)


def _cifar(name: str, classes: int, folder: str, files: tuple[str, ...], test: str, key: str, options: Options) -> Data:
    if options.path is not None and download.missing(options.path):
        download.fetch(name, folder, options.path)
    root = given(options)
    notes: tuple[str, ...] = ()
    parts: list[Images]
    if (root / "train").is_dir():
        train, held = list_folder(root, "train"), list_folder(root, "test")
        notes = (*train.notes, *held.notes, *check_alike(train, held, "train", "test"))
        if len(train.classes) != classes:
            raise BadInput(f"{root} has {len(train.classes)} train classes, expected the {classes} of {name}")
        held = relabelled(held, train.classes)
        parts = [(decode(part, 32, options.workers), part.labels, part.names) for part in (train, held)]
    else:
        root = root / folder if (root / folder).is_dir() else root
        if not (root / test).is_file():
            raise BadInput(f"no {name} in {options.path}: expected {folder}/ or train/<class>/*.jpg")
        read = [read_cifar_batch(root / file, key, classes) for file in files]
        pixels, labels, names = zip(*read)
        joined = torch.cat(pixels), list(chain.from_iterable(labels)), list(chain.from_iterable(names))
        parts = [joined, read_cifar_batch(root / test, key, classes)]
    return _in_memory(name, classes, parts[0], parts[1], options, notes=notes)


def cifar10(options: Options) -> Data:
    """CIFAR-10 as cifar-10-batches-py or as train/<class>/ and test/<class>/ folders of images."""
    files = tuple(f"data_batch_{i}" for i in range(1, 6))
    return _cifar("cifar10", 10, "cifar-10-batches-py", files, "test_batch", "labels", options)


def cifar100(options: Options) -> Data:
    """CIFAR-100 (fine labels) as cifar-100-python or as folders."""
    return _cifar("cifar100", 100, "cifar-100-python", ("train",), "test", "fine_labels", options)


def imagenet(options: Options) -> Data:
    """train/<wnid>/ (or ILSVRC2012_img_train/) and val/<wnid>/. val is the test part and enough to evaluate."""
    root, size = given(options), options.image_size or 224
    held = list_folder(root, "val")

    def part(listing: Listing, index: Tensor, training: bool = False) -> Batches:
        chosen = index[: options.subset].tolist()
        names, labels = (tuple(column[i] for i in chosen) for column in (listing.names, listing.labels))
        batch = options.train_batch if training else options.eval_batch
        listing = Listing(root, names, labels, listing.classes)
        common = (listing, size, batch, options.workers, training, options.bad_images)
        if options.dali_device is None:
            return Folder(*common)
        from kerf.compress.data.dali import Dali  # an extra

        on_gpu = options.dali_device.startswith("cuda")
        return Dali(*common, device=options.dali_device, own_resizing=on_gpu)

    order = evaluation_order(len(held.names), options.subset)
    split = next((s for s in ("train", "ILSVRC2012_img_train") if (root / s).is_dir()), None)
    if split is None:
        held, notes = alone(held, "val")
        return Data("imagenet", len(held.classes), size, None, None, part(held, order), (*held.notes, *notes))
    train = list_folder(root, split)
    notes = (*train.notes, *held.notes, *check_alike(train, held, split, "val"))
    test = part(relabelled(held, train.classes), order)
    fit, val = split_order(len(train.names))
    return Data("imagenet", len(train.classes), size, part(train, fit, True), part(train, val), test, notes)


def given(options: Options) -> Path:
    """The folder of a data set that lies in one. Raises BadInput, FileNotFoundError."""
    if options.path is None:
        raise BadInput("no folder was given: --data_path")
    if not options.path.is_dir():
        raise FileNotFoundError(f"no folder {options.path} (--data_path)")
    return options.path


DATA_SETS: dict[str, Callable[[Options], Data]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "synthetic": synthetic,
}
EMBEDDED = frozenset({"digits", "synthetic"})  # need no path
SIZED = frozenset({"imagenet", "synthetic"})  # take an image size
DECODED = frozenset({"imagenet"})  # image by image, in every epoch


def open_data(name: str, options: Options) -> Data:
    """Raises ValueError for an unknown name or a folder of another form, FileNotFoundError for a missing one."""
    if name not in DATA_SETS:
        raise BadInput(f"unknown data set {name!r}: expected one of {', '.join(DATA_SETS)}")
    if options.image_size and name not in SIZED:
        raise BadInput(f"{name} has images of 32x32: leave --image_size out, or use {' or '.join(sorted(SIZED))}")
    if options.num_classes and name != "synthetic":
        raise BadInput(f"{name} has its own classes: leave --num_classes out")
    if name not in DECODED:
        asked = [("--use_dali", options.dali_device is not None), ("--bad_images skip", options.bad_images == "skip")]
        for flag in (flag for flag, given in asked if given):
            raise BadInput(f"{flag} is for {' or '.join(sorted(DECODED))}: {name} is decoded before training begins")
    if name not in EMBEDDED and options.path is None:
        raise BadInput(f"data set {name} needs --data_path: the folder it is stored in")
    return DATA_SETS[name](options)
