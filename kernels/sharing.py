"""How threads share a kernel: by pixels or by block rows; and how a block row is cut into register tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kernels.isa import threads

if TYPE_CHECKING:
    from kernels.direct import Weights


def shares(target: Target, tiles: int) -> dict:
    """What a configuration says of threads: nothing of one; of several how many, and whether they cut the pixels.

    Threads that cut the pixels read each its own input, but all weights; so they do where there are enough ``tiles``.
    """
    parts = threads(target)
    if parts == 1:
        return {}
    even = tiles >= parts and -(-tiles // parts) * parts <= 1.15 * tiles
    return {"parts": parts, "split": "pixels" if even else "rows"}


def sub_rows(height: int, most: int, body: Callable) -> None:
    """body(first row, rows) for a block row's ``height`` channels, ``most`` of them at a time."""
    whole, rest = divmod(height, most)
    if whole == 1:
        body(0, most)
    elif whole:
        with T.serial(0, whole) as i:
            body(i * most, most)
    if rest:
        body(whole * most, rest)


def in_parts(weights: Weights, channels: int, by_pixels: bool, body: Callable) -> None:
    """body(turn, rows) for every thread, in one parallel region: rows(f) calls f(block row, its channels) for the
    thread's block rows, or, ``by_pixels``, for all of them; turn is the thread's (first, step) among tiles of pixels,
    for in_turn.
    """
    full, short = weights.rows, channels - weights.rows * weights.height

    def rows(begin, end, f: Callable) -> None:
        with T.serial(begin, T.min(end, full)) as b:
            f(b, weights.height)
        if short and weights.parts == 1:
            f(full, short)
        elif short:
            with T.If(end > full), T.Then():
                f(full, short)

    everything = partial(rows, 0, full + bool(short))
    if weights.parts == 1:
        body((0, 1), everything)
    else:
        with T.parallel(0, weights.parts) as k:
            if by_pixels:
                body((k, weights.parts), everything)
            else:
                body((0, 1), partial(rows, *weights.share(k)))


def in_turn(turn: tuple, before: int, count: int):
    """(loop over the thread's own of ``count`` tiles, its variable -> tile), when ``before`` were dealt out already."""
    first, step = turn
    if step == 1:
        return T.serial(0, count), lambda i: i
    first = T.Bind((first + step - before % step) % step)
    return T.serial(0, (count - first + step - 1) // step), lambda i: first + i * step
