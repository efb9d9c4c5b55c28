"""Vectors of lanes in TIR, and how runs of floats and loops are cut into them. One lane means scalars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

UNROLLED = 64  # vectors of a run that are written out one after the other
GROUP = 8  # of a longer one, at a time


def run(at, lanes: int):
    """Index of ``lanes`` consecutive entries from ``at``."""
    return T.ramp(at, 1, lanes) if lanes > 1 else at


def splat(value, lanes: int, dtype: str = "float32"):
    """``value``, a TIR expression or a number (of ``dtype``), in every lane."""
    value = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return T.broadcast(value, lanes) if lanes > 1 else value


def cast(value, dtype: str, lanes: int):
    """A vector of ``lanes``, or a number where that is 1, as numbers of ``dtype``."""
    return T.cast(value, dtype if lanes == 1 else f"{dtype}x{lanes}")


def rounded_product(a, b):
    """a b of float32, rounded before anything is added to it: LLVM makes one instruction of other products and a sum,
    with one rounding, where the CPU has it.
    """
    product = a * b
    return tirx.call_llvm_pure_intrin(product.ty.dtype, "llvm.arithmetic.fence", product)


def fma(a, b, c):
    """a b + c of float32, rounded once; of CPUs without the instruction a call for each lane."""
    return tirx.call_llvm_pure_intrin(a.ty.dtype, "llvm.fma", a, b, c)


def quotient(v, first, rest):
    """v / size, all in float32 and finite; ``first`` and ``rest`` are kerf.kernels.pointwise.quotient.reciprocal's."""
    return fma(v, first, v * rest)


def every(vector, first: int, step: int, lanes: int):
    """Lanes first, first + step, ... of a vector, ``lanes`` of them."""
    return tirx.Shuffle([vector], [T.int32(first + i * step) for i in range(lanes)])


def prefetch(entry, level: int = 1) -> None:
    """Ask for the cache line of a buffer's entry, which need not exist, to come into the cache of that level."""
    how = [T.int32(0), T.int32(4 - level), T.int32(1)]  # read, locality, data: the arguments of llvm.prefetch
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", T.address_of(entry), *how))


def spans(n: int, lanes: int) -> tuple[int, list[int]]:
    """Vectors covering n consecutive floats: (lanes, offsets). The last one overlaps its neighbour, never the end."""
    lanes, count = covering(n, lanes)
    return lanes, [min(i * lanes, n - lanes) for i in range(count)]


def covering(n: int, lanes: int) -> tuple[int, int]:
    """(lanes, how many): the vectors of ``spans``, of which a large image has millions."""
    while lanes > n:
        lanes //= 2
    return lanes, -(-n // lanes)


def groups(n: int, lanes: int) -> Iterator[tuple[Any, int, list[int]]]:
    """The vectors of ``spans``: (where some begin, lanes, offsets from there). Of a long run all but the last are in a
    loop, or its code would grow with it: what is emitted before the next is asked for is that loop's body.
    """
    lanes, offsets = spans(n, lanes)
    if len(offsets) <= UNROLLED:
        yield 0, lanes, offsets
        return
    whole = n // (GROUP * lanes)
    with T.serial(0, whole) as i:
        yield i * (GROUP * lanes), lanes, offsets[:GROUP]
    if rest := offsets[whole * GROUP :]:
        yield 0, lanes, rest


def overrun(n: int, lanes: int) -> int:
    """Lanes of one vector over n floats and a few more, where the next smaller one would not do; else 0."""
    one = 1 << (n - 1).bit_length()
    return one if n < one <= lanes else 0


def even_tiles(count: int, most: int) -> list[tuple[int, int, int]]:
    """``count`` items in tiles of at most ``most``, nearly equal, as at most two (first, tiles, size)."""
    n = -(-count // most)
    big = -(-count // n)
    small = n * big - count
    return [t for t in ((0, n - small, big), ((n - small) * big, small, big - 1)) if t[1] and t[2]]
