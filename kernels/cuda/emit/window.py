"""The window of input that an output pixel reads, inside a function: where it begins, which taps lie in the image."""

from __future__ import annotations

from math import prod

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.layout import in_rows
from kerf.kernels.problem import Problem


class Window:
    """Of an output pixel, or of several consecutive ones that lie together in the input (gather.contiguous)."""

    def __init__(self, p: Problem, pixel):
        """``pixel``: number in a row of the output, behind its end too: then no tap is inside."""
        self.p = p
        if gather.pointwise(p):
            self.base, self.inside = pixel, T.Bind(T.cast(pixel < in_rows(p)[1], "uint32"))
            return
        image, place = pixel % p.batch, T.Bind(pixel // p.batch)
        y = T.Bind(place // p.out_width * p.stride[0] - p.padding[0])
        x = T.Bind(place % p.out_width * p.stride[1] - p.padding[1])
        self.base = T.Bind((y * p.width + x) * p.batch + image)
        exists = pixel < p.out_height * p.out_width * p.batch
        if not gather.bounded(p):
            self.inside = T.Bind(T.cast(exists, "uint32"))
            return
        kind = "uint32" if p.taps <= 32 else "uint64"
        rows = _bits(y, p.kernel[0], p.dilation[0], p.height, p.kernel[1], kind)
        columns = _bits(x, p.kernel[1], p.dilation[1], p.width, 1, kind)
        # bit r * kw for row r; times the columns' bits: a copy of them for every row
        bits = tirx.Select(exists, rows * columns, tirx.const(0, kind))
        # in memory: what only has a name TVM computes anew wherever it is used
        self.inside = T.alloc_buffer((1,), kind, scope="local")
        T.buffer_store(self.inside, bits, [0])

    def valid(self, tap):
        """1 where ``tap`` is inside the image, else 0 (int32). Without padding taps are not looked at."""
        inside = self.inside
        if gather.bounded(self.p):
            kind, inside = inside.dtype, inside[0]
            inside = inside >> (tirx.const(tap, kind) if isinstance(tap, int) else T.cast(tap, kind))
            inside = inside & tirx.const(1, kind)
        return T.cast(inside, "int32")


def flat(p: Problem, x, dtype: str):
    """The input's buffer as one row."""
    return T.decl_buffer((prod(in_rows(p)),), dtype, data=x.data)


def _bits(first, count: int, step: int, size: int, spread: int, kind: str):
    """A number whose bit ``spread`` * k tells whether first + k * step lies in [0, size)."""
    found = None
    for k in range(count):
        at = first + k * step
        bit = tirx.Select(tirx.all(at >= 0, at < size), tirx.const(1 << spread * k, kind), tirx.const(0, kind))
        found = bit if found is None else found + bit
    return T.Bind(found)
