"""Where a direct convolution finds its input: zero-padded planes, split by stride phase, so that every tap of every
output pixel is one fixed offset from that pixel's flat position and runs of pixels load as plain vectors.

Phase (a, b) of a plane holds padded pixels (a + i * stride_h, b + j * stride_w); with stride 1 there is one phase.
With stride 1 the zeros right of a row are the zeros left of the next one (shared pitch), so a 56-wide row with
padding 1 costs 57 floats, not 58. Without padding and stride the input itself serves and nothing is copied. Either way
a channel starts on a cache line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from kerf.kernels.cpu.layout import LINE, pitch
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Planes:
    """Geometry in floats: ``pitch`` per row, ``plane`` per phase, ``channel`` per input channel."""

    p: Problem
    copied: bool
    pitch: int
    plane: int
    channel: int

    @classmethod
    def of(cls, p: Problem) -> Planes:
        top, left, bottom, right = p.padding
        sh, sw = p.stride
        if p.padding == (0, 0, 0, 0) and p.stride == (1, 1):
            return cls(p, False, p.width, p.height * p.width, pitch(p.height * p.width))
        if sw == 1:
            row = max(p.width + max(left, right), p.out_width)
        else:
            row = -(-(p.width + left + right) // sw)
        plane = -(-(p.height + top + bottom) // sh) * row
        return cls(p, True, row, plane, -(-plane * math.prod(_phases(p)) // LINE) * LINE)

    @property
    def phases(self) -> tuple[int, int]:
        """Of rows and of columns, up to the last that a tap reads: of a strided 1 x 1 kernel one of each."""
        return _phases(self.p)

    @property
    def pixels(self) -> int:
        """Flat length of the output at this pitch, from the first pixel to the last."""
        return (self.p.out_height - 1) * self.pitch + self.p.out_width

    def meets(self, row: int, first, last):
        """Two conditions, under both of which row ``row`` of the kernel reads the image, and not its padding alone, for
        output rows ``first`` to ``last``; ints or TIR expressions.
        """
        p = self.p
        at = row * p.dilation[0] - p.padding[0]
        return last * p.stride[0] + at >= 0, first * p.stride[0] + at < p.height

    @property
    def met(self) -> float:
        """The share of the kernel's rows, over all output rows, that do."""
        pairs = [*product(range(self.p.kernel[0]), range(self.p.out_height))]
        return sum(all(self.meets(row, i, i)) for row, i in pairs) / len(pairs)

    def place(self, row, col):
        """(phase, offset in it) of tap (row, col) of the kernel from the output pixel's flat position; ints or TIR
        expressions. Where rows are short an offset may lie past the phase's end, in the padding behind it.
        """
        (sh, sw), (dh, dw) = self.p.stride, self.p.dilation
        r, q = row * dh, col * dw
        return r % sh * self.phases[1] + q % sw, r // sh * self.pitch + q // sw

    def tap(self, row, col):
        """The same as one offset."""
        phase, offset = self.place(row, col)
        return phase * self.plane + offset

    def scratch(self, channels: int) -> int:
        """Floats to allocate for this many channels; what is past the last is read as padding, or read and dropped."""
        return channels * self.channel + self.behind

    @property
    def behind(self) -> int:
        """Floats of padding after the last channel."""
        return self.p.padding[1] + self.p.padding[3] + LINE

    def column(self, phase: int, q):
        """Image column held by column q of a phase."""
        return q * self.p.stride[1] + phase - self.p.padding[1]

    def pixels_of(self, phase: int) -> tuple[int, int]:
        """Columns begin .. stop-1 of a phase that are pixels."""
        left, sw, width = self.p.padding[1], self.p.stride[1], self.p.width
        begin = max(0, -((phase - left) // sw))
        return begin, max(begin, min(self.pitch, -((phase - left - width) // sw)))


def _phases(p: Problem) -> tuple[int, int]:
    rows, columns = (
        max(i * dilation % stride for i in range(size)) + 1
        for size, dilation, stride in zip(p.kernel, p.dilation, p.stride)
    )
    return rows, columns
