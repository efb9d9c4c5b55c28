"""Bytes by a table of 256: the instructions that look up a vector of them at a time.

x86 with AVX-512 VBMI looks up in 128 bytes (vpermi2b), AVX2 in 16 of each half of a vector (vpshufb), NEON in 64 (tbl,
tbx). The parts are put together by the higher bits of the index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.layout import pitch
from kerf.kernels.cpu.machine import Machine, machine_of, parallel_loop, threads
from kerf.kernels.pointwise.table import SIZE
from kerf.kernels.vector import run

Read = Callable[[Any], Any]  # the table's bytes at one vector's places


@dataclass(frozen=True)
class Lookup:
    """``lanes`` bytes at a time: ``parts`` of a table, as ``read`` gives its bytes, and ``of`` them and a vector of
    uint8 the table's.
    """

    lanes: int
    parts: Callable[[Read], list]
    of: Callable[[list, Any], Any]


def lookup_of(machine: Machine) -> Lookup | None:
    """Of a machine's instructions; None where it has none."""
    if "avx512_vbmi" in machine.features and machine.family == "avx512":
        return Lookup(64, lambda read: [read(T.ramp(i, 1, 64)) for i in range(0, SIZE, 64)], _vbmi)
    if machine.family in ("avx512", "avx2"):
        return Lookup(32, _halves, _avx2)
    if machine.family == "neon":
        return Lookup(16, lambda read: [read(T.ramp(i, 1, 16)) for i in range(0, SIZE, 16)], _neon)
    return None


def lookup(shape: tuple[int, int, int, int], target: Target, dtypes: tuple[str, str]) -> tvm.tirx.PrimFunc:
    """(x, table (256,), y), images (n, c, pitch) of bytes: y is the entry of x, whose bits are a number from 0 on."""
    n, c, h, w = shape
    planes = (n, c, pitch(h * w))
    size, known = math.prod(planes), lookup_of(machine_of(target))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        given = T.arg("x", T.buffer(planes, dtypes[0])), T.arg("table", T.buffer((SIZE,), dtypes[1]))
        result = T.arg("y", T.buffer(planes, dtypes[1]))
        x, table, y = (T.decl_buffer((math.prod(b.shape),), "uint8", data=b.data) for b in (*given, result))
        if known is None or size < known.lanes:
            with T.serial(0, size) as i:
                T.buffer_store(y, table[T.cast(x[i], "int32")], [i])
        else:
            shares = min(threads(target), -(-size // known.lanes))
            with parallel_loop(target)(0, shares) as k:
                look_up(known, table, (x, 0), (y, 0), size, (k, shares))
    return builder.get()


def look_up(
    known: Lookup, table, x: tuple[Any, Any], y: tuple[Any, Any], count: int, share: tuple[Any, int] = (0, 1)
) -> None:
    """``count`` bytes, at least a vector, from a buffer and a place in it to another: share[0] of share[1] of them."""
    lanes, vectors = known.lanes, -(-count // known.lanes)
    parts = known.parts(lambda at: T.Bind(table[at]))
    with T.serial(share[0] * vectors // share[1], (share[0] + 1) * vectors // share[1]) as i:
        at = T.Bind(T.min(i * lanes, count - lanes))
        given = T.Bind(T.reinterpret(f"uint8x{lanes}", x[0][run(x[1] + at, lanes)]))
        found = T.reinterpret(f"{y[0].dtype}x{lanes}", known.of(parts, given))
        T.buffer_store(y[0], found, [run(y[1] + at, lanes)])


def _vbmi(parts: list, x):
    """The highest bit says which of two tables of 128."""
    signed = [T.reinterpret("int8x64", v) for v in (*parts, x)]
    low, high = (
        tirx.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.vpermi2var.qi.512", a, signed[-1], b)
        for a, b in (signed[:2], signed[2:4])
    )
    return T.reinterpret("uint8x64", _by_sign(signed[-1], low, high))


def _halves(read: Read) -> list:
    """16 bytes each, twice in a vector."""
    sixteen = [read(T.ramp(i, 1, 16)) for i in range(0, SIZE, 16)]
    return [T.Bind(tirx.Shuffle([part, part], [T.int32(k) for k in range(32)])) for part in sixteen]


def _avx2(parts: list, x):
    """The lower four bits look up in every part, the higher ones choose between two, and two of those, and so on."""
    low = T.Bind(T.reinterpret("int8x32", x & T.broadcast(T.uint8(15), 32)))
    found = [
        tirx.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.pshuf.b", T.reinterpret("int8x32", part), low)
        for part in parts
    ]
    bit = x  # the next highest of its bits is the fifth, the sixth ...
    shifted = [T.Bind(T.reinterpret("int8x32", bit * T.broadcast(T.uint8(1 << (3 - k)), 32))) for k in range(4)]
    for chosen in shifted:
        found = [T.Bind(_by_sign(chosen, a, b)) for a, b in zip(found[::2], found[1::2])]
    return T.reinterpret("uint8x32", found[0])


def _neon(parts: list, x):
    """tbl gives 0, tbx leaves what is there, where an index is beyond their 64 bytes."""
    signed = [T.reinterpret("int8x16", v) for v in parts]
    y = tirx.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *signed[:4], T.reinterpret("int8x16", x))
    for first in range(4, 16, 4):
        index = T.reinterpret("int8x16", x - T.broadcast(T.uint8(first * 16), 16))
        y = tirx.call_llvm_pure_intrin(
            "int8x16", "llvm.aarch64.neon.tbx4.v16i8", T.Bind(y), *signed[first : first + 4], index
        )
    return T.reinterpret("uint8x16", y)


def _by_sign(bits, positive, negative):
    """Of a vector of int8 ``bits``."""
    return T.Select(bits < T.broadcast(T.int8(0), bits.ty.dtype.lanes), negative, positive)
