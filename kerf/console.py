"""How a command answers: in words for a person, with --json in one object for a program, with --quiet only if asked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn

from kerf.errors import INPUT_ERRORS

QUIET = "print nothing but what was asked for; errors still come"
JSON = "print one JSON object at the end, and nothing else on stdout; words go to stderr"


class Parser(argparse.ArgumentParser):
    """Raises ValueError in place of printing the usage and leaving: its errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help=QUIET)
    parser.add_argument("--json", action="store_true", help=JSON)


@contextmanager
def speaking(quiet: bool, as_json: bool) -> Iterator[None]:
    """Within, what is printed about the work goes to stdout; with --json to stderr, with --quiet nowhere.

    Python's sys.stdout alone is led elsewhere: what a C library writes to its descriptor is not.
    """
    if quiet:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    elif as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def answer(found: dict[str, Any]) -> None:
    """Prints the object of --json. Raises ValueError for NaN and infinity, which JSON lacks."""
    print(json.dumps(found, indent=2, allow_nan=False))


def guarded(program: str, work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """The exit code of a command: 0, or with one line on stderr 2 for what a person can mend, 130 for Ctrl-C."""
    try:
        work()
    except INPUT_ERRORS as error:
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    return 0


def one_line(error: BaseException) -> str:
    """An error's message as one line; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
