"""Functions of pixels in padded planes (kerf.kernels.cpu.layout): sums, products, affine maps, activations, and the
concatenation of images on the way. One pass over memory, whatever the number of steps.

Where one image of bytes becomes another by numbers of planes and channels, a plane of more pixels than there are bytes
is looked up in the table of its function, which is computed first.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.emit.lookup import Lookup, look_up, lookup_of
from kerf.kernels.cpu.layout import LINE, pitch
from kerf.kernels.cpu.machine import lanes_of, machine_of, parallel_loop
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.pointwise.program import CHANNEL, FLOAT, IMAGE, PLANE, Pointwise
from kerf.kernels.pointwise.table import SIZE
from kerf.kernels.vector import cast, run, spans, splat

WORTH_A_TABLE = 2 * SIZE  # pixels of a plane


def pointwise(f: Pointwise, shape: tuple[int, int, int, int], target: Target) -> tvm.tirx.PrimFunc:
    """(operand 0 or its parts, the other operands, y): images (n, c, pitch), planes (n, c, 1), channels (1, c, 1)."""
    n, c, h, w = shape
    width = pitch(h * w)
    parts = f.parts or (c,)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        shapes = [(n, part, width) for part in parts] + [_sizes(kind, n, c, width) for kind in f.operands[1:]]
        dtypes = (f.dtypes[0],) * (len(parts) - 1) + f.dtypes
        given = [T.arg(f"x{i}", T.buffer(s, d)) for i, (s, d) in enumerate(zip(shapes, dtypes))]
        result = T.arg("y", T.buffer((n, c, width), f.result))
        flat = [T.decl_buffer((math.prod(s),), d, data=x.data) for s, d, x in zip(shapes, dtypes, given)]
        y = T.decl_buffer((n * c * width,), f.result, data=result.data)
        known = lookup_of(machine_of(target)) if _by_table(f) and width >= WORTH_A_TABLE else None
        if f.flat and width < LINE:
            _run(f, flat, y, [0] * len(flat), 0, n * c * width, target)
        else:
            for part, source in enumerate(flat[: len(parts)]):
                first, operands = sum(parts[:part]), [source, *flat[len(parts) :]]
                with parallel_loop(target)(0, n * parts[part]) as i:
                    channel = T.Bind(first + i % parts[part])
                    plane = T.Bind(i // parts[part] * c + channel)
                    at = {IMAGE: plane * width, PLANE: plane, CHANNEL: channel}
                    places = [i * width, *(at[kind] for kind in f.operands[1:])]
                    if known is not None:
                        _plane_by_table(f, operands, y, places, plane * width, width, target, known)
                        continue
                    _run(f, operands, y, places, plane * width, width, target)
                    for k in range(h * w, width) if f.divides else ():
                        T.buffer_store(y, tirx.const(0, f.result), [plane * width + k])
    return builder.get()


def _sizes(kind: str, n: int, c: int, width: int) -> tuple[int, int, int]:
    return (n, c, width) if kind == IMAGE else (n if kind == PLANE else 1, c, 1)


def _by_table(f: Pointwise) -> bool:
    """Whether operand 0 is an image of bytes, the others are numbers, and the result is bytes."""
    return FLOAT not in (f.dtypes[0], f.result) and IMAGE not in f.operands[1:] and len(f.steps) > 0 and not f.divides


def _plane_by_table(
    f: Pointwise, operands: list, y, places: list, to, count: int, target: Target, known: Lookup
) -> None:
    """As _run."""
    table = T.alloc_buffer((SIZE,), "uint8", scope="local", annotations=REGISTERS)
    lanes = lanes_of(target, FLOAT)
    numbers = [T.Bind(splat(operand[place], lanes)) for operand, place in zip(operands[1:], places[1:])]
    with T.serial(0, SIZE // lanes) as i:
        index = T.Bind(cast(T.ramp(i * lanes, 1, lanes), "uint8", lanes))
        byte = index if f.dtypes[0] == "uint8" else T.Bind(T.reinterpret(f"int8x{lanes}", index))
        value = f.value([byte, *numbers], lanes)
        T.buffer_store(table, T.reinterpret(f"uint8x{lanes}", value), [run(i * lanes, lanes)])
    look_up(known, table, (operands[0], places[0]), (y, to), count)


def _run(f: Pointwise, operands: list, y, places: list, to, count: int, target: Target) -> None:
    """``count`` numbers from ``to`` of y, of operands from their ``places``."""
    narrowest = min((*f.dtypes, f.result), key=lambda dtype: np.dtype(dtype).itemsize)
    lanes, offsets = spans(count, lanes_of(target, narrowest))  # of floats, several vectors at a time
    fixed = {
        i: T.Bind(splat(operands[i][places[i]], lanes)) for i, kind in enumerate(f.operands) if kind != IMAGE
    }  # one number each
    with T.serial(0, len(offsets)) as k:
        at = T.Bind(T.min(k * lanes, count - lanes))
        vectors = [
            fixed[i] if i in fixed else T.Bind(operand[run(places[i] + at, lanes)])
            for i, operand in enumerate(operands)
        ]
        T.buffer_store(y, f.value(vectors, lanes), [run(to + at, lanes)])
