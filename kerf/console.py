"""How a command answers: in words for a person, with --json in one object for a program, with --quiet only if asked."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn

from kerf import failures
from kerf.errors import BadInput

QUIET = "print nothing but what was asked for; errors still come"
JSON = "print one JSON object at the end, and nothing else on stdout; words go to stderr"


class Parser(argparse.ArgumentParser):
    """Raises BadInput in place of printing the usage and leaving: its errors are one line, as all others."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        for word in words:  # of which argparse makes an empty list, whatever the flag is of
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"{word}: no value")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see --help")


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


def carry_out(command: Callable[[], dict[str, Any]], quiet: bool, as_json: bool) -> None:
    """A command whose answer is an object: what it prints about its work goes where ``speaking`` says."""
    with speaking(quiet, as_json):
        found = command()
    if as_json:
        answer(found)


def guarded(program: str, work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """The exit code of a command: 0, or with one line on stderr 2 for what a person can mend, 130 for Ctrl-C, 70 for an
    error that nobody foresaw.
    """
    with terminal(program):
        try:
            work()
            flush()
        except BaseException as error:
            return failed(error, f"{program}: ", interrupted)
    return 0


def ended(program: str, main: Callable[[], int | None]) -> int:
    """The exit code of a program that returns one of its own."""
    code: list[int | None] = []
    return guarded(program, lambda: code.append(main())) or code[0] or 0


def failed(error: BaseException, program: str = "", interrupted: str = "interrupted") -> int:
    """Says in one line on stderr what ended the command; its exit code. ``program``: what the line begins with.

    Raises the SystemExit of --help again, but not rich's for a closed pipe, nor where what it said cannot be written.
    """
    if isinstance(error, SystemExit):
        reason = error.__context__ if isinstance(error.__context__, BrokenPipeError) else _unwritable(sys.stdout)
        if reason is None:
            raise error
        error = reason
    if (unwritable := _unwritable(sys.stdout)) is not None:
        _forget_stdout()
        if isinstance(error, OSError) and error.filename is None and error.errno == unwritable.errno != errno.EPIPE:
            error = BadInput(f"the output cannot be written ({error.strerror}); send stdout elsewhere")
    code, line = failures.of(error, interrupted)
    print(f"{program}{line}", file=sys.stderr, flush=True)
    return code


@contextmanager
def terminal(program: str) -> Iterator[None]:
    """Within, all that is said can be printed, also where stdout is closed or plain ASCII, and a warning is a line."""
    if sys.stdout is None:  # closed by who started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {failures.printable(message)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def flush() -> None:
    """What is left to write would fail when Python leaves, with a traceback. Raises OSError."""
    sys.stdout.flush()


def _unwritable(stream: Any) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        return error
    except ValueError:  # it was closed
        return OSError(errno.EBADF, "closed")
    return None


def _forget_stdout() -> None:
    """Python flushes stdout once more when it leaves: into nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


one_line = failures.one_line
