"""How threads share a kernel: by pixels or by block rows; and how a block row is cut into register tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.weight_format import Rows, Weights
from kerf.kernels.cpu.layout import LINE, in_planes
from kerf.kernels.cpu.machine import threads
from kerf.kernels.problem import Problem

REMOTE_CYCLES, WEIGHT_CYCLES = 8, 4  # a line: out of another core's cache; of weights, which are asked for ahead


def splits(target: Target, tiles: int) -> list[Config]:
    """What a configuration may say of threads: nothing of one; of several how many, and what they cut: the block rows,
    or, where there are ``tiles`` for all of them, the pixels.
    """
    parts = threads(target)
    if parts == 1:
        return [{}]
    return [{"parts": parts, "split": split} for split in ("rows", *(["pixels"] if tiles >= parts else []))]


def busiest(p: Problem, c: Config, runs: Sequence[tuple[int, int]]) -> float:
    """The share of all work that the busiest thread has; ``runs`` of tiles, in order: (tiles, size of each)."""
    parts = c.get("parts", 1)
    if c.get("split") == "pixels":
        tiles = sum(n for n, _ in runs)
        done = [_work_before(k * tiles // parts, runs) for k in range(parts + 1)]
        return max(end - begin for begin, end in pairwise(done)) / done[-1]
    rows = -(-p.out_channels // (p.n or c["rows"]))
    return -(-rows // parts) / rows


def _work_before(tile: int, runs: Sequence[tuple[int, int]]) -> int:
    work = 0
    for n, size in runs:
        work += min(tile, n) * size
        tile -= min(tile, n)
    return work


def waits(p: Problem, c: Config) -> float:
    """Cycles per image that each thread waits for memory.

    By block rows it reads the whole image, most of it out of another core's cache; by pixels it reads all weights.
    """
    parts = c.get("parts", 1)
    if c.get("split") == "pixels":
        floats = p.taps * (p.nnzb * p.n if p.n else p.in_channels // p.groups * p.out_channels)
        return (1 - 1 / parts) * floats / LINE * WEIGHT_CYCLES
    return (1 - 1 / parts) * math.prod(in_planes(p)[1:]) / LINE * REMOTE_CYCLES


def sub_rows(block, height: int, most: int, body: Callable[[Rows], None]) -> None:
    """``body`` for the ``height`` channels of a block row, ``most`` of them at a time."""
    whole, rest = divmod(height, most)
    if whole == 1:
        body(Rows(block, 0, most))
    elif whole:
        with T.serial(0, whole) as i:
            body(Rows(block, i * most, most))
    if rest:
        body(Rows(block, whole * most, rest))


def in_parts(weights: Weights, channels: int, by_pixels: bool, body: Callable) -> None:
    """body(turn, rows) for every thread, in one parallel region: rows(f) calls f(block row, its channels) for the
    thread's block rows, or, ``by_pixels``, for all of them; turn, for in_turn, is (thread, of how many) of those that
    share the tiles of pixels.
    """
    full, short = weights.rows, channels - weights.rows * weights.n

    def rows(begin, end, f: Callable) -> None:
        with T.serial(begin, T.min(end, full)) as b:
            f(b, weights.n)
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


def in_turn(turn: tuple, before: int, count: int, total: int):
    """(loop over the thread's own of ``count`` tiles, its variable -> tile), of ``total``, ``before`` of them earlier.

    A thread's tiles lie side by side: in the next layer the same thread reads, but for a tile, what it wrote here.
    """
    k, parts = turn
    if parts == 1:
        return T.serial(0, count), lambda i: i
    begin, end = (T.Bind(T.max(0, T.min(count, part * total // parts - before))) for part in (k, k + 1))
    return T.serial(0, end - begin), lambda i: begin + i
