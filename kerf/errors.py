"""What kerf raises for what a person can do something about. Every command prints these as one line and exits with 2.

The classes derive from Python's own, too, so that code which expects a ValueError of a library gets one.
"""


class KerfError(Exception):
    """The base of all."""


class BadInput(KerfError, ValueError):
    """What was given cannot be used: the message says what came, what was expected and what to do."""


class Unsupported(BadInput):
    """What was given is valid, and kerf has no way for it."""


class Mismatch(KerfError, RuntimeError):
    """A compiled network computes something else than the file that it was made of."""


class DeviceLost(KerfError, RuntimeError):
    """No device is left to measure on, or none becomes free."""


# What ends a command in one line. Libraries raise ValueError for files and numbers that a person gave, OSError for
# files that are not there, ImportError for packages that are not installed.
INPUT_ERRORS = (KerfError, ValueError, OSError, ImportError)
