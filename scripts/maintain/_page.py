"""What the programs that write a page of docs/ have in common."""

import argparse
from collections.abc import Callable
from pathlib import Path

from kerf import console, files


def written(name: str, about: str | None, page: Path, text: Callable[[], str]) -> int:
    """The exit code of program ``name``, whose --help is ``about``: the page is written, and its place printed."""

    def main() -> int:
        argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
        files.write(page, text())
        print(page)
        return 0

    return console.ended(name, main)
