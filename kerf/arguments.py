"""An example input as the arguments of a call: a tensor, a tuple of them, or a dict by the names of arguments."""

from collections.abc import Mapping
from typing import Any


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments, and those by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    return (example,), {}
