"""A file of torch.save (.pth, .pt, .bin) as plain values, without running code that is in it.

A pickle names classes and functions, and reading one calls them. Called are only those that torch allows for weights
and the plain ones below, which people keep beside their weights: settings, numbers, dates and paths. All else is
refused with the name of the class and what to save instead.
"""

import argparse
import datetime
import pathlib
import pickletools
import re
import types
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from torch.serialization import get_safe_globals, get_unsafe_globals_in_checkpoint, safe_globals
from torch.torch_version import TorchVersion

from kerf.errors import BadInput

Allowed = tuple[Callable[..., object], str]  # what is called, under the name that the file has for it
RESAVE = 'load it with the program that wrote it and save the weights alone: torch.save(model.state_dict(), "{}")'


def _plain_classes() -> Iterator[Allowed]:
    kinds: list[type] = [argparse.Namespace, types.SimpleNamespace, uuid.UUID, Decimal, TorchVersion]
    kinds += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    for kind in kinds:
        yield kind, f"{kind.__module__}.{kind.__name__}"
    # a path of another system cannot be opened here, and need not be
    for name, pure in {"Posix": pathlib.PurePosixPath, "Windows": pathlib.PureWindowsPath}.items():
        for written in (f"{name}Path", f"Pure{name}Path"):
            yield pure, f"pathlib.{written}"
            yield pure, f"pathlib._local.{written}"  # as Python 3.13 has it
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    assert callable(scalar)
    assert callable(array)
    for core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
        yield scalar, f"{core}.multiarray.scalar"
        yield array, f"{core}.multiarray._reconstruct"
    yield np.ndarray, "numpy.ndarray"
    yield np.dtype, "numpy.dtype"
    for name in np.dtypes.__all__:
        yield getattr(np.dtypes, name), f"numpy.dtypes.{name}"


ALLOWED = tuple(_plain_classes())


def read(path: Path) -> object:
    """What torch.save wrote. Raises OSError, or ValueError with one line that says why it cannot be read."""
    with path.open("rb") as file:
        begin = file.read(64)
    known = set(get_safe_globals())  # the block takes away all that it was given, a caller's own ones too
    with safe_globals([pair for pair in ALLOWED if pair not in known]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a file is TorchScript, or older than numpy 2
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types here, pickle's and zipfile's among them
            reason = _reason(path, begin, error)
    raise BadInput(f"{path} cannot be read as a state dict: {reason}")


def _reason(path: Path, begin: bytes, error: Exception) -> str:
    """Why torch could not read the file, and what to do; within the block that allows classes."""
    save = RESAVE.format(f"{path.stem}-weights.pth")
    if begin[:2] == b"PK":
        return _reason_of_archive(path, error, save)
    if begin[:1] == b"\x80":  # a pickle: torch's own form before 1.6
        named = re.search(r"GLOBAL (\S+)|unrecognized function (\S.*)", str(error))
        if named:
            return refused([named[1] or named[2]], save)
        if begin[1] > 2:
            return f"it is a pickle of protocol {begin[1]}, which is not torch.save's; {save}"
        return f"it is cut short or damaged ({printable(error)}); copy it again"
    if not begin:
        return "it is empty; copy it again"
    if begin.startswith(b"version https://git-lfs"):
        return "it is Git LFS's note of where the file is; fetch the file itself with git lfs pull"
    if begin[8:9] == b"{":
        return "by its content it is a safetensors file; rename it to .safetensors"
    return f"torch.save did not write it, it begins with {begin[:16]!r}; expected a .safetensors, .pth or .pt file"


def _reason_of_archive(path: Path, error: Exception, save: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = next((archive.read(name) for name in names if name.endswith("/data.pkl")), None)
    except Exception:  # zipfile raises many types: of a bit that says "encrypted" it is RuntimeError
        return "it is cut short or damaged; copy it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return f'it is a TorchScript archive; save its weights: torch.save(torch.jit.load("{path}").state_dict(), …)'
    if pickled is None:
        return f"it is a zip archive that torch.save did not write, with {printable(names[0]) if names else 'no file'}"
    classes = _classes(path, pickled)
    if any(name.startswith(("torch.nn.modules.", "torch.fx.")) for name in classes):
        return f"it holds a whole module, {printable(classes[0])}, whose code reading it would run; {save}"
    if classes:
        return refused(classes, save)
    return f"{printable(error).removesuffix('.')}; {save}"


def _classes(path: Path, pickled: bytes) -> list[str]:
    """Names of what the pickle calls and nobody allows, in its order: the outermost object's class is the first."""
    try:
        unsafe = set(get_unsafe_globals_in_checkpoint(path))
        written = [str(arg).replace(" ", ".") for op, arg, _ in pickletools.genops(pickled) if op.name == "GLOBAL"]
    except Exception:  # operators that torch does not read, and a pickle that ends early
        return []
    names = dict.fromkeys(re.sub("^__builtin__", "builtins", name) for name in written)
    return [name for name in (*names, *sorted(unsafe.difference(names))) if name in unsafe]


def refused(classes: list[str], save: str) -> str:
    first, more = printable(classes[0]), len(classes) - 1
    others = f" and {more} more class{'es' if more > 1 else ''}" if more else ""
    return f"apart from plain tensors it holds {first}{others}, and reading that would run code; {save}"


def printable(text: object) -> str:
    """One line without what a terminal would act on: torch colours its messages, and names in a file are anybody's."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
    return "".join(c for c in " ".join(plain.split()) if c.isprintable())
