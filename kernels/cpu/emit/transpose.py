"""Transposing a square of vectors in registers, by shuffles that x86 and ARM have an instruction for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

QUAD = 4  # lanes of 128 bits, which is as far as a cheap shuffle moves a float


def transposed(rows: Sequence[Any], lanes: int) -> list[Any]:
    """``lanes`` vectors of so many lanes, 4, 8 or 16: lane i of vector j is lane j of ``rows[i]``."""
    quads = [_quads(rows[i : i + QUAD], lanes) for i in range(0, lanes, QUAD)]
    columns: list[Any] = [None] * lanes
    for j in range(QUAD):
        for q, column in enumerate(_gather([quad[j] for quad in quads], lanes)):
            columns[QUAD * q + j] = column
    return columns


def _shuffle(a, b, lanes: Sequence[int]):
    """Of the lanes of a, and of b's behind them."""
    return T.Bind(tirx.Shuffle([a, b], [T.int32(i) for i in lanes]))


def _quads(rows: Sequence[Any], lanes: int) -> list[Any]:
    """Four rows, each quad of lanes transposed for itself."""
    low, high, left, right = [], [], [], []
    for q in range(0, lanes, QUAD):
        low += [q, q + lanes, q + 1, q + 1 + lanes]
        high += [q + 2, q + 2 + lanes, q + 3, q + 3 + lanes]
        left += [q, q + 1, q + lanes, q + 1 + lanes]
        right += [q + 2, q + 3, q + 2 + lanes, q + 3 + lanes]
    a, b, c, d = rows
    first, second = (_shuffle(a, b, low), _shuffle(c, d, low)), (_shuffle(a, b, high), _shuffle(c, d, high))
    return [_shuffle(*pair, way) for pair in (first, second) for way in (left, right)]


def _gather(vectors: Sequence[Any], lanes: int) -> list[Any]:
    """As many vectors as there are, with one quad each: the q-th has quad q of all of them, in order."""
    if len(vectors) == 1:
        return list(vectors)

    def quads(a, b, of: Sequence[int]):
        return _shuffle(a, b, [QUAD * q + i for q in of for i in range(QUAD)])

    if len(vectors) == 2:
        a, b = vectors
        return [quads(a, b, of) for of in ((0, 2), (1, 3))]
    a, b, c, d = vectors
    lower, upper = ((quads(a, b, of), quads(c, d, of)) for of in ((0, 1, 4, 5), (2, 3, 6, 7)))
    return [quads(*pair, of) for pair in (lower, upper) for of in ((0, 2, 4, 6), (1, 3, 5, 7))]
