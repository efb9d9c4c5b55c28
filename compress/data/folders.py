"""Folders of classes: which images lie in them, and what lies there besides. Nothing is opened."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kerf.errors import BadInput

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
# What systems leave in folders, beside all that is hidden.
LITTER = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
NAMED = 3  # files, or folders, that a note names


@dataclass(frozen=True)
class Listing:
    """Files of one split: `names` are relative to the data path, `labels` index the sorted classes.

    `empty`: class folders without an image, which are no classes. `notes`: what was left out, a line each.
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
    folder = root / split
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found: dict[str, list[str]] = {}
    others: list[str] = []
    for entry in inside:
        if not _counts(entry.name):
            continue
        if not entry.is_dir():
            others.append(entry.name)
            continue
        files = sorted(_files(entry))
        found[entry.name] = [f for f in files if Path(f).suffix.lower() in SUFFIXES]
        others += [f"{entry.name}/{f}" for f in files if Path(f).suffix.lower() not in SUFFIXES]
    classes = tuple(name for name, files in found.items() if files)
    if not classes:
        held = f"; it holds {named(others, 'other file')}" if others else ""
        raise BadInput(f"no images in {folder}: expected {split}/<class>/*.jpg{held}")
    names = tuple(f"{split}/{name}/{file}" for name in classes for file in found[name])
    labels = tuple(label for label, name in enumerate(classes) for _ in found[name])
    empty = tuple(name for name, files in found.items() if not files)
    notes = []
    if empty:
        notes.append(f"{split}: {named(empty, 'class folder')} without an image left out")
    if others:
        notes.append(f"{split}: {named(others, 'file')} left out, which {'is' if len(others) == 1 else 'are'} no image")
    return Listing(root, names, labels, classes, empty, tuple(notes))


def check_alike(train: Listing, held: Listing, train_split: str, held_split: str) -> tuple[str, ...]:
    """Notes on classes that the held-out split has no image of. Raises BadInput that names the folders that differ."""
    lacking = [name for name in train.classes if name not in held.classes and name not in held.empty]
    unknown = [name for name in held.classes if name not in train.classes]
    if not lacking and not unknown:
        bare = [name for name in train.classes if name in held.empty]
        return (f"{held_split}: no images of {', '.join(bare[:NAMED])}{'…' if len(bare) > NAMED else ''}",) * bool(bare)
    said = [f"only {train_split} has {named(lacking)}"] * bool(lacking)
    said += [f"only {held_split} has {named(unknown)}"] * bool(unknown)
    bare = [name for name in unknown if name in train.empty]
    said += [f"{train_split} has no images in {named(bare)}"] * bool(bare)
    folded = {name.casefold(): name for name in lacking}
    pairs = [f"{folded[name.casefold()]} and {name}" for name in unknown if name.casefold() in folded]
    said += [f"{', '.join(pairs[:NAMED])} differ in case alone"] * bool(pairs)
    raise BadInput(
        f"{train.root}: the class folders of {train_split} and {held_split} differ: {'; '.join(said)}; "
        "rename, add or remove folders until both have the same"
    )


def relabelled(held: Listing, classes: Sequence[str]) -> Listing:
    """With labels that index ``classes``, which hold all of its own."""
    to = [classes.index(name) for name in held.classes]
    labels = tuple(to[label] for label in held.labels)
    return Listing(held.root, held.names, labels, tuple(classes), held.empty, held.notes)


def named(names: Sequence[str], what: str = "") -> str:
    """ "2 files (a.txt, b.txt)": how many, and the first few."""
    first = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({first})" if what else first


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LITTER


def _files(folder: Path) -> Iterator[str]:
    """All files below, relative to it. Links are followed, but not round and round."""
    seen = {os.path.realpath(folder)}
    for at, folders, files in os.walk(folder, followlinks=True):
        kept = []
        for name in folders:
            real = os.path.realpath(os.path.join(at, name))
            if _counts(name) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(at, name).relative_to(folder).as_posix() for name in files if _counts(name))
