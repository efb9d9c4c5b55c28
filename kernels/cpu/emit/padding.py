"""Copies of an image's channels into the planes that a convolution reads (planes.py): padded, split by phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import in_planes
from kerf.kernels.vector import every, groups, overrun, run


@dataclass(frozen=True)
class Padding:
    """From ``src`` to ``dst``, both flat, in vectors of at most ``lanes``. ``fill``: what padding holds, a number, or
    an expression of the images' type.
    """

    planes: Planes
    src: Any
    dst: Any
    lanes: int
    fill: Any = 0.0
    read: Callable[[Any], Any] = lambda pixels: pixels  # what becomes of them on the way

    def copy(self, origin, count, loop: Callable) -> None:
        """``count`` channels whose planes start at float ``origin`` of ``src``. ``loop``: T.serial or T.parallel."""
        planes, p = self.planes, self.planes.p
        with loop(0, count) as c:
            image = T.Bind(origin + c * in_planes(p)[2])
            for a in range(planes.phases[0]):
                self._rows(c * planes.channel, a, image)
            end = planes.plane * math.prod(planes.phases)  # what is between channels is the last row's right padding
            self._pad(c * planes.channel + end, planes.channel - end)
        self._pad(count * planes.channel, planes.behind)

    def _rows(self, channel, a: int, image) -> None:
        """The rows of phase ``a``, in all phases of columns, of the channel that begins at float ``channel``."""
        planes, p, sh = self.planes, self.planes.p, self.planes.p.stride[0]
        top, rows, used = p.padding[0], planes.plane // planes.pitch, planes.phases
        # rows first .. last-1 of this phase are rows of the image, the others padding
        first = max(0, -((a - top) // sh))
        last = max(first, min(rows, -((a - top - p.height) // sh)))
        origins = [T.Bind(channel + (a * used[1] + b) * planes.plane) for b in range(used[1])]
        for at in origins:
            self._pad(at, first * planes.pitch)
        if last > first:
            with T.serial(0, last - first) as i:
                row = T.Bind(image + ((i + first) * sh + a - top) * p.width)
                self._row(row, [at + (i + first) * planes.pitch for at in origins])
        for at in origins:
            self._pad(at + last * planes.pitch, (rows - last) * planes.pitch)

    def _row(self, row, to: list) -> None:
        """The image's row at float ``row``, to float ``to[b]`` in phase b of columns."""
        planes, sw = self.planes, self.planes.p.stride[1]
        runs = [planes.pixels_of(b) for b in range(sw)]
        # columns that are pixels in every phase are split from whole vectors, the one or two others float by float
        begin, stop = max(first for first, _ in runs), min(last for _, last in runs)
        if sw == 1:
            self._copy_run(row, to[0])
        elif begin < stop:
            self._split(row, to, begin, stop)
        for b, (first, last) in enumerate(runs[: len(to)]):
            self._pad(to[b], first)
            self._pad(to[b] + last, planes.pitch - last)
            for q in range(first, last):
                if sw > 1 and not begin <= q < stop:
                    T.buffer_store(self.dst, self.read(self.src[row + planes.column(b, q)]), [to[b] + q])

    def _split(self, row, to: list, begin: int, stop: int) -> None:
        """Columns ``begin`` .. ``stop`` - 1 of all phases: every stride-th pixel of a vector goes to the same one."""
        sw = self.planes.p.stride[1]
        for start, step, offsets in groups(stop - begin, self.lanes):
            for q in (begin + start + o for o in offsets):
                pixels = self.read(self.src[run(row + self.planes.column(0, q), step * sw)])
                for b, at in enumerate(to):
                    T.buffer_store(self.dst, every(pixels, b, sw, step), [run(at + q, step)])

    def _copy_run(self, row, at) -> None:
        planes, p = self.planes, self.planes.p
        begin, stop = planes.pixels_of(0)
        if stop == begin:
            return
        one = overrun(stop - begin, self.lanes)
        more = one - (stop - begin)
        inside = p.height * p.width + more <= in_planes(p)[2] and begin + one <= 2 * planes.pitch
        # what is too much is in the next row, which is written later
        whole = [(0, one, [0])] if one and inside and p.padding[2] else groups(stop - begin, self.lanes)
        for start, step, offsets in whole:
            for o in (start + offset for offset in offsets):
                pixels = self.read(self.src[run(row + planes.column(0, begin) + o, step)])
                T.buffer_store(self.dst, pixels, [run(at + begin + o, step)])

    def _pad(self, start, count: int) -> None:
        """Short runs unrolled, since most are one or two floats of padding."""
        if count == 0:
            return
        fill = tirx.const(self.fill, str(self.dst.dtype)) if isinstance(self.fill, float) else self.fill
        if count <= 4:
            for i in range(count):
                T.buffer_store(self.dst, fill, [start + i])
            return
        with T.serial(0, count) as i:
            T.buffer_store(self.dst, fill, [start + i])
