"""Sweeps over tables: a few representatives in every run, the whole table among the slow tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sweep(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Values for parametrize, in their order: those of `quick` always run, the others are marked slow.

    Raises ValueError where `quick` names what is not there: a representative that was renamed would run no more.
    """
    values = list(values)
    absent = [value for value in quick if value not in values]
    if absent:
        raise ValueError(f"{absent} to run always: not among {values}")
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
