"""Sums of four products of bytes: the instructions of integer kernels, and how pixels get into their order.

A vector of pixels has four channels of each: byte 4 p + k is channel k of pixel p. ``Dot.add`` adds to an int32 for
each pixel the four products with four weights, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.machine import Machine
from kerf.kernels.vector import cast, every

QUAD = 4  # channels that are multiplied at a time
PART = 16  # bytes within which a cheap shuffle moves a byte
PACKED = (4, 8)  # float32 of vectors that ``packed`` takes
LARGEST_PAIR = 128  # times 255 fits 16 bits: weights of one sign that vpmaddubsw may add up


@dataclass(frozen=True)
class Dot:
    """``paired``: channels 2 i and 2 i + 1 are summed in 16 bits, which saturate: kerf.kernels.cpu.int8.quads packs
    weights so that they never do. ``signed``: pixels are taken as int8, with their highest bit turned.
    """

    name: str
    add: Callable[[Any, Any, Any, int], Any]  # of (int32 sums, pixels, weights, bytes of a vector)
    paired: bool = False
    signed: bool = False
    by_element: bool = False  # whether weights may be an element of a vector
    narrow: Callable[[Sequence[Any], int, Any, Any], Any] | None = None  # where the CPU has instructions for it


def _intrinsic(dtype: str, name: str, *args):
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def _vnni(acc, pixels, weights, width: int):
    return _intrinsic(f"int32x{width // 4}", f"llvm.x86.avx512.vpdpbusd.{8 * width}", acc, pixels, weights)


def _maddubs(acc, pixels, weights, width: int):
    name = {16: "llvm.x86.ssse3.pmadd.ub.sw.128", 32: "llvm.x86.avx2.pmadd.ub.sw"}[width]
    pairs = _intrinsic(f"int16x{width // 2}", name, pixels, weights)
    return add_pairs(acc, pairs, T.broadcast(T.int16(1), width // 2), width)


def add_pairs(acc, a, b, width: int):
    """int32 sums, to each of which the two products of a pair of int16 of ``a`` and ``b`` are added (x86)."""
    name = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd"}[width]
    return acc + _intrinsic(f"int32x{width // 4}", name, a, b)


def _sdot(acc, pixels, weights, width: int):
    return _intrinsic(f"int32x{width // 4}", "llvm.aarch64.neon.sdot", acc, pixels, weights)


def _plain(acc, pixels, weights, width: int):
    lanes = width // QUAD
    for k in range(QUAD):
        x = T.reinterpret(f"uint8x{lanes}", every(pixels, k, QUAD, lanes))
        acc = acc + cast(x, "int32", lanes) * cast(every(weights, k, QUAD, lanes), "int32", lanes)
    return acc


def _narrow_x86(vectors: Sequence[Any], width: int, low, high):
    """Four vectors of float32 below 2^31, pixels as quads_of leaves them, rounded (half to even) to uint8 in their
    order, between ``low`` and ``high``, which are float32 and whole.
    """
    round_, words, bytes_ = {
        16: ("sse2.cvtps2dq", "sse2.packssdw.128", "sse2.packuswb.128"),
        32: ("avx.cvt.ps2dq.256", "avx2.packssdw", "avx2.packuswb"),
        64: ("avx512.mask.cvtps2dq.512", "avx512.packssdw.512", "avx512.packuswb.512"),
    }[width]
    lanes = width // QUAD
    masked = [T.broadcast(T.int32(0), lanes), T.int16(-1), T.int32(4)] if width == 64 else []  # as the CPU rounds
    whole = [_intrinsic(f"int32x{lanes}", f"llvm.x86.{round_}", T.Bind(v), *masked) for v in vectors]
    pairs = [_intrinsic(f"int16x{width // 2}", f"llvm.x86.{words}", *whole[i : i + 2]) for i in (0, 2)]
    y = T.reinterpret(f"uint8x{width}", _intrinsic(f"int8x{width}", f"llvm.x86.{bytes_}", *pairs))
    least, most = (T.broadcast(T.cast(bound, "uint8"), width) for bound in (low, high))
    return T.max(T.min(y, most), least)


def _narrow_neon(vectors: Sequence[Any], width: int, low, high):
    """As _narrow_x86, of 16 pixels and of any size: every step saturates."""
    whole = [_intrinsic("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", v) for v in vectors]
    words = [T.Bind(_intrinsic("int16x4", "llvm.aarch64.neon.sqxtn.v4i16", v)) for v in whole]
    pairs = [side_by_side(words[i : i + 2], 4) for i in (0, 2)]
    bytes_ = [T.Bind(_intrinsic("int8x8", "llvm.aarch64.neon.sqxtun.v8i8", v)) for v in pairs]
    y = T.reinterpret("uint8x16", T.Bind(side_by_side(bytes_, 8)))
    least, most = (T.broadcast(T.cast(bound, "uint8"), width) for bound in (low, high))
    return T.max(T.min(y, most), least)


DOTS = {
    dot.name: dot
    for dot in (
        Dot("vnni", _vnni, narrow=_narrow_x86),
        Dot("maddubs", _maddubs, paired=True, narrow=_narrow_x86),
        Dot("sdot", _sdot, signed=True, by_element=True, narrow=_narrow_neon),
        Dot("plain", _plain),  # on whatever CPU; and what tests put in the place of instructions that theirs lacks
    )
}


def signed(c: Config) -> bool:
    """Whether a kernel of this configuration takes pixels as int8."""
    return "dot" in c and DOTS[c["dot"]].signed


def dots(machine: Machine) -> tuple[str, tuple[int, ...]]:
    """The best instruction of a machine, and bytes of its vectors, widest first."""
    if machine.features & {"avx512_vnni", "avx_vnni"}:
        wide = "avx512_vnni" in machine.features and machine.lanes[0] == 16
        return "vnni", (64, 32, 16) if wide else (32, 16)
    if machine.lanes[0] >= 8:
        return "maddubs", (32, 16)
    return ("sdot" if "dotprod" in machine.features else "plain"), (16,)


def quads_of(channels: Sequence[Any], width: int, signed: bool) -> list[Any]:
    """Four vectors of ``width`` pixels of a channel each, as four vectors of pixels of four channels.

    Within every PART of 16 bytes: vector v has pixels 16 i + 4 v .. + 3 at its byte 16 i.
    """
    if signed:
        channels = [T.Bind(turned(c)) for c in channels]
    (a, b), (c, d) = (
        [T.Bind(T.reinterpret(f"int16x{width // 2}", _unpacked(*two, 1, width, high))) for high in (False, True)]
        for two in ((channels[0], channels[1]), (channels[2], channels[3]))
    )
    words = [_unpacked(*two, 2, width, high) for two in ((a, c), (b, d)) for high in (False, True)]
    return [T.Bind(T.reinterpret(f"int8x{width}", v)) for v in words]


def turned(pixels):
    """Bytes, a vector of them or one, less 128 as int8: their highest bit the other way round."""
    lanes = pixels.ty.dtype.lanes
    return pixels ^ (T.broadcast(T.uint8(128), lanes) if lanes > 1 else T.uint8(128))


def weaving(nothing) -> Any:
    """What ``linear`` is given: 4 p + k is byte 16 k + p. ``nothing``: a 0 that the compiler does not know to be one;
    knowing the order, it would find itself another way to it, of three times as many instructions.
    """
    return T.Bind(T.reinterpret("int8x64", T.ramp(T.int32(0x30201000) + nothing, T.int32(0x01010101), 16)))


def linear(parts: Sequence[Any], order) -> Any:
    """16 bytes of each of four channels as a vector of pixels, in their order (AVX-512 VBMI)."""
    return _woven(T.Bind(tirx.Shuffle(list(parts), [T.int32(i) for i in range(64)])), order)


def linear_tile(channels: Sequence[Any], order) -> list[Any]:
    """64 bytes of each of four channels as four vectors of pixels, in their order (AVX-512 VBMI)."""
    a, b, c, d = channels
    halves = [[T.Bind(_parts(x, y, (i, i + 1, i + 4, i + 5))) for x, y in ((a, b), (c, d))] for i in (0, 2)]
    return [_woven(T.Bind(_parts(x, y, (i, i + 2, i + 4, i + 6))), order) for x, y in halves for i in (0, 1)]


def _parts(a, b, which: Sequence[int]):
    """Parts of two vectors, 0 to 3 of ``a`` and 4 to 7 of ``b``, as one."""
    return tirx.Shuffle([a, b], [T.int32(PART * part + i) for part in which for i in range(PART)])


def _woven(parts, order) -> Any:
    given = T.reinterpret("int8x64", parts)
    return T.Bind(_intrinsic("int8x64", "llvm.x86.avx512.permvar.qi.512", given, order))


def _unpacked(a, b, size: int, width: int, high: bool):
    """Elements of ``size`` bytes of a and b in turn, of the lower or the higher half of every part."""
    count, per = width // size, PART // size
    at: list[int] = []
    for part in range(width // PART):
        first = part * per + (per // 2 if high else 0)
        for i in range(first, first + per // 2):
            at += [i, count + i]
    return T.Bind(tirx.Shuffle([a, b], [T.int32(i) for i in at]))


def packed(dot: Dot, vectors: Sequence[Any], lanes: int, low, high) -> list[tuple[int, Any]]:
    """Up to four vectors of float32 side by side as uint8, as ``dot`` narrows them: (place, bytes), one or two."""
    assert dot.narrow
    width, count = lanes * QUAD, len(vectors)
    four = [*vectors, *[vectors[-1]] * (QUAD - count)]
    whole = T.Bind(T.reinterpret(f"int32x{lanes}", dot.narrow(four, width, low, high)))
    if lanes > PART // QUAD:  # within every PART of 16 bytes the four vectors have four each
        parts = width // PART
        whole = tirx.Shuffle([whole], [T.int32(QUAD * part + v) for v in range(QUAD) for part in range(parts)])
    found = T.Bind(T.reinterpret(f"uint8x{width}", whole))
    sizes = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,)}[count]
    places = [0, *[lanes * size for size in sizes[:-1]]]
    if count == QUAD:
        return [(0, found)]
    return [(place, every(found, place, 1, size * lanes)) for place, size in zip(places, sizes)]


def widened(pixels, width: int) -> list[Any]:
    """A vector of bytes as four of int32, in the order of quads_of."""
    nothing = T.Bind(T.broadcast(T.uint8(0), width))
    return [T.reinterpret(f"int32x{width // QUAD}", v) for v in quads_of([pixels, *[nothing] * 3], width, False)]


def in_order(vectors: Sequence[Any], width: int):
    """int32 sums of the four vectors of quads_of as one vector, of pixels in their order."""
    lanes = width // QUAD
    at = [p % PART // QUAD * lanes + p // PART * QUAD + p % QUAD for p in range(width)]
    return tirx.Shuffle(list(vectors), [T.int32(i) for i in at])


def side_by_side(vectors: Sequence[Any], lanes: int):
    """Vectors of ``lanes`` as one."""
    return tirx.Shuffle(list(vectors), [T.int32(i) for i in range(lanes * len(vectors))])
