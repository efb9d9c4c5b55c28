"""Inputs and outputs of more than one tensor: an example as the arguments of a call, and what an answer is made of."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments, and those by name: of a tensor, a tuple of them, or a dict by the names of arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    return (example,), {}


def dataclasses_in(value: Any) -> Iterator[type]:
    """The types of dataclasses in an answer, which torch does not take apart unless it was told of them."""
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for part in parts:
        yield from dataclasses_in(part)
