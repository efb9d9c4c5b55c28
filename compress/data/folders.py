"""Folders of classes: which images lie in them, and what lies there besides. Nothing is opened."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kerf.errors import BadInput
from kerf.images import SUFFIXES

# What systems leave in folders, beside all that is hidden.
LITTER = frozenset({"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"})
LITTER |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}
NAMED = 3  # files, or folders, that a note names
# How two names may look alike and be two folders.
LOOKS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("case", str.casefold),
    ("spaces", lambda name: "".join(name.split())),
    ("the encoding of accents", lambda name: unicodedata.normalize("NFC", name)),
)


@dataclass(frozen=True)
class Listing:
    """Files of one split: `names` are relative to the data path, `labels` index the sorted classes.

    `empty`: class folders without an image. `notes`: what was left out, a line each.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def list_folder(root: Path, split: str) -> Listing:
    """Lists the images of root/split/<class>/, however deep they lie in it (as torchvision does), in sorted order.

    Hidden files and folders are passed over. Raises BadInput when there is no image of any class.
    """
    found: dict[str, list[str]] = {}
    loose: list[str] = []  # files beside the class folders
    above = _line_of(root) | _line_of(root / split)
    for name, is_folder in _inside(root / split) if (root / split).is_dir() else ():
        if is_folder:
            found[name] = sorted(_files(root / split / name, "", above))
        else:
            loose.append(name)
    images = {name: [file for file in files if _is_image(file)] for name, files in found.items()}
    others = [name for name in loose if not _is_image(name)]
    others += [f"{name}/{file}" for name, files in found.items() for file in files if not _is_image(file)]
    loose = [name for name in loose if _is_image(name)]
    classes = tuple(name for name, files in images.items() if files)
    if not classes:
        raise BadInput(_nothing(root, split, loose, others))
    notes = []
    if loose:
        notes.append(f"{split}: {named(loose, 'image')} in no class folder left out")
    if others:
        read = " ".join(sorted(SUFFIXES))
        notes.append(f"{split}: {named(others, 'file')} of other suffixes left out; those of images are {read}")
    return Listing(
        root,
        tuple(f"{split}/{name}/{file}" for name in classes for file in images[name]),
        tuple(label for label, name in enumerate(classes) for _ in images[name]),
        classes,
        tuple(name for name, files in images.items() if not files),
        tuple(notes),
    )


def check_alike(train: Listing, held: Listing, train_split: str, held_split: str) -> tuple[str, ...]:
    """Notes on class folders without images. Raises BadInput that names the folders that differ."""
    lacking = [name for name in train.classes if name not in held.classes and name not in held.empty]
    unknown = [name for name in held.classes if name not in train.classes]
    if lacking or unknown:
        said = [f"only {train_split} has {named(lacking)}"] * bool(lacking)
        said += [f"only {held_split} has {named(unknown)}"] * bool(unknown)
        bare = [name for name in unknown if name in train.empty]
        said += [f"{train_split} has no images in {named(bare)}"] * bool(bare)
        raise BadInput(
            f"{train.root}: the class folders of {train_split} and {held_split} differ: "
            f"{'; '.join([*said, *_lookalikes(lacking, unknown)])}; "
            "rename, add or remove folders until both have the same"
        )
    notes = []
    for split, empty in ((train_split, train.empty), (held_split, held.empty)):
        if bare := [name for name in empty if name not in train.classes]:
            notes.append(f"{split}: {named(bare, 'class folder')} without an image left out")
    if bare := [name for name in held.empty if name in train.classes]:
        notes.append(f"{held_split}: no images of {named(bare)}")
    return tuple(notes)


def alone(held: Listing, split: str) -> tuple[Listing, tuple[str, ...]]:
    """A split without a training part, and notes. Its empty folders stay classes: trained weights count those, too."""
    if not held.empty:
        return held, ()
    note = f"{split}: no images of {named(held.empty)}; with no train folder, every folder of {split} counts as a class"
    return relabelled(held, sorted((*held.classes, *held.empty))), (note,)


def relabelled(held: Listing, classes: Sequence[str]) -> Listing:
    """With labels that index `classes`, which hold all of its own."""
    to = [classes.index(name) for name in held.classes]
    labels = tuple(to[label] for label in held.labels)
    return Listing(held.root, held.names, labels, tuple(classes), held.empty, held.notes)


def named(names: Sequence[str], what: str = "") -> str:
    """ "2 files (a.txt, b.txt)": how many, and the first few."""
    first = ", ".join(map(_shown, names[:NAMED])) + (", …" if len(names) > NAMED else "")
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({first})" if what else first


def _shown(name: str) -> str:
    """Quoted where its end would not be seen, escaped where it cannot be printed."""
    return name if name.isprintable() and name == name.strip() else ascii(name)


def _lookalikes(lacking: Sequence[str], unknown: Sequence[str]) -> Iterator[str]:
    for what, look in LOOKS:
        same = {look(name): name for name in lacking}
        pairs = [f"{_shown(same[look(name)])} and {_shown(name)}" for name in unknown if look(name) in same]
        if pairs:
            yield f"{', '.join(pairs[:NAMED])} differ in {what} alone"


def _nothing(root: Path, split: str, loose: Sequence[str], others: Sequence[str]) -> str:
    """What is said of a split without images."""
    said = f"no images in {root / split}: expected {split}/<class>/*.jpg"
    if not (root / split).is_dir():
        beside = [name for name, is_folder in _inside(root) if is_folder]
        return f"{said}; there is no such folder, {f'but {named(beside)}' if beside else 'nor any other'}"
    if loose:
        said += f"; {named(loose, 'image')} in it without a class folder"
    return said + (f"; it holds {named(others, 'other file')}" if others else "")


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in SUFFIXES


def _line_of(folder: Path) -> frozenset[str]:
    """The folder and all above it, links resolved."""
    real = folder.resolve()
    return frozenset(map(str, (real, *real.parents)))


def _inside(folder: str | Path) -> list[tuple[str, bool]]:
    """Names in a folder, sorted, and whether each is one itself; without what is hidden, and litter."""
    with os.scandir(folder) as entries:
        return sorted(
            # no system call but for links, of which a broken one is no folder
            (e.name, os.path.isdir(e.path) if e.is_symlink() else e.is_dir())
            for e in entries
            if not e.name.startswith(".") and e.name.lower() not in LITTER
        )


def _files(folder: str | Path, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """All files below, `prefix` before each. Links are followed, but to no folder that they lie in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for name, is_folder in _inside(folder):
        if is_folder:
            yield from _files(os.path.join(folder, name), f"{prefix}{name}/", above | {real})
        else:
            yield prefix + name
