"""CIFAR fetched as torchvision fetches it, where its folder is missing."""

import contextlib
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from kerf.errors import BadInput

# data set -> torchvision's class, which knows where the archive is and its MD5 sum
SOURCES: dict[str, type[datasets.CIFAR10]] = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def missing(root: Path) -> bool:
    """Whether there is no such folder, or nothing in it."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def fetch(name: str, folder: str, root: Path) -> None:
    """Puts `folder`, cifar-10-batches-py or cifar-100-python, into `root`: whole, or not at all.

    Of several processes that fetch at once the first one's stays. Raises BadInput where it cannot be fetched.
    """
    print(f"no {name} in {root}: downloading it there", file=sys.stderr)
    source, new = SOURCES[name], not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".kerf-", dir=root) as temporary:
            with contextlib.redirect_stdout(sys.stderr):
                download_and_extract_archive(source.url, temporary, filename=source.filename, md5=source.tgz_md5)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(Path(temporary) / folder, root / folder)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision's own is "File not found …"
        if new:
            with contextlib.suppress(OSError):
                root.rmdir()
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadInput(
            f"no folder {root} with {name} in it, and it cannot be downloaded ({reason}): "
            f"expected {folder}/ or train/<class>/*.jpg there"
        ) from None
