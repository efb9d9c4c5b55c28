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


class Diverged(KerfError, FloatingPointError):
    """Training whose loss is no number any more: a person can lower its rate."""


# What a person can mend: OSError is raised for files that are not there, ImportError for packages that are not
# installed. A ValueError that is none of kerf's own comes from a mistake in kerf (kerf.failures).
INPUT_ERRORS = (KerfError, OSError, ImportError)
