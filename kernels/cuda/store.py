"""Eight numbers of a channel into and out of registers, and what every kernel ends with: bias, residual, activation."""

from __future__ import annotations

from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from kernels.cuda.layout import VECTOR
from kernels.epilogue import ACTIVATION
from kernels.problem import Problem
from kernels.vector import run, splat


def dtype_of(p: Problem) -> str:
    """Of images."""
    return "float16" if p.precision == "f16" else "float32"


def lanes(dtype: str) -> int:
    """Numbers in 16 bytes."""
    return 8 if dtype == "float16" else 4


def as_float(value, count: int):
    return T.cast(value, "float32" if count == 1 else f"float32x{count}")


def ptx(text: str, *operands) -> None:
    """One PTX instruction."""
    T.evaluate(script.ptx[text](*operands))


def load(to, first: int, source, index, valid, count: int, fill: float = 0.0) -> None:
    """to[first ...] = ``count`` numbers of ``source`` from ``index`` as float32; ``fill`` where not ``valid``."""
    step = min(count, 4)
    for k in range(0, count, step):
        place = run(first + k, step)
        with T.If(valid > 0):
            with T.Then():
                T.buffer_store(to, as_float(source[run(index + k, step)], step), [place])
            with T.Else():
                T.buffer_store(to, splat(fill, step), [place])


def emit_store(p: Problem, y, residual, channel, pixel, values: list, bias) -> None:
    """y[channel, pixel ...] = activation(values + bias + residual): ``values`` are two vectors of 4 float32."""
    wide = lanes(y.dtype)
    if residual is not None:
        held = T.alloc_buffer((VECTOR,), y.dtype, scope="local")
        for k in range(0, VECTOR, wide):
            T.buffer_store(held, residual[channel, T.ramp(pixel + k, 1, wide)], [T.ramp(k, 1, wide)])
    out = T.alloc_buffer((VECTOR,), y.dtype, scope="local")
    for k, value in zip(range(0, VECTOR, 4), values, strict=True):
        value = value + splat(bias, 4)
        if residual is not None:
            value = value + as_float(held[T.ramp(k, 1, 4)], 4)
        T.buffer_store(out, T.cast(ACTIVATION[p.activation](value, 4), f"{y.dtype}x4"), [T.ramp(k, 1, 4)])
    for k in range(0, VECTOR, wide):
        T.buffer_store(y, out[T.ramp(k, 1, wide)], [channel, T.ramp(pixel + k, 1, wide)])
