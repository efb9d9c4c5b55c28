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

from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.layout import LINE, in_planes, pitch
from kerf.kernels.problem import Problem
from kerf.kernels.vector import every, overrun, run, spans


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
        used = math.prod(cls._phases(p))
        return cls(p, True, row, plane, -(-plane * used // LINE) * LINE)

    @staticmethod
    def _phases(p: Problem) -> tuple[int, int]:
        """Phases of rows and of columns up to the last that a tap reads: of a strided 1 x 1 kernel one of each."""
        taps = zip(p.kernel, p.dilation, p.stride)
        return tuple(max(i * dilation % stride for i in range(size)) + 1 for size, dilation, stride in taps)

    @property
    def pixels(self) -> int:
        """Flat length of the output at this pitch, from the first pixel to the last."""
        return (self.p.out_height - 1) * self.pitch + self.p.out_width

    def tap(self, row, col):
        """Offset of tap (row, col) of the kernel from the output pixel's flat position; ints or TIR expressions."""
        (sh, sw), (dh, dw) = self.p.stride, self.p.dilation
        r, q = row * dh, col * dw
        return (r % sh * self._phases(self.p)[1] + q % sw) * self.plane + r // sh * self.pitch + q // sw

    def scratch(self, channels: int) -> int:
        """Floats to allocate for this many channels; what is past the last is read as padding, or read and dropped."""
        return channels * self.channel + self.p.padding[1] + self.p.padding[3] + LINE

    def emit_copy(self, src, origin, dst, count, lanes: int, loop, fill: float = 0.0) -> None:
        """Fill ``dst`` (flat) with ``count`` channels whose planes start at float ``origin`` of ``src`` (flat).

        ``loop``: T.serial or T.parallel, over channels. ``fill`` is what padding holds.
        """
        p, (sh, sw) = self.p, self.p.stride
        top, rows = p.padding[0], self.plane // self.pitch
        used = self._phases(p)
        runs = [self._run(b) for b in range(sw)]
        # columns that are pixels in every phase are split from whole vectors, the one or two others float by float
        common = max(begin for begin, _ in runs), min(stop for _, stop in runs)
        with loop(0, count) as c:
            image = T.Bind(origin + c * in_planes(p)[2])
            for a in range(used[0]):
                # rows first_row .. last_row-1 of this phase are rows of the image, the others zero padding
                first_row = max(0, -((a - top) // sh))
                last_row = max(first_row, min(rows, -((a - top - p.height) // sh)))
                origins = [T.Bind(c * self.channel + (a * used[1] + b) * self.plane) for b in range(used[1])]
                for at in origins:
                    _fill(dst, at, first_row * self.pitch, fill)
                if last_row > first_row:
                    with T.serial(0, last_row - first_row) as i:
                        row = T.Bind(image + ((i + first_row) * sh + a - top) * p.width)
                        if sw == 1:
                            self._copy_row(src, dst, row, origins[0] + (i + first_row) * self.pitch, lanes)
                        elif common[0] < common[1]:
                            step, offsets = spans(common[1] - common[0], lanes)
                            for q in (common[0] + o for o in offsets):
                                pixels = src[run(row + self._column(0, q), step * sw)]
                                for b in range(used[1]):
                                    at = origins[b] + (i + first_row) * self.pitch + q
                                    T.buffer_store(dst, every(pixels, b, sw, step), [run(at, step)])
                        for b, (begin, stop) in enumerate(runs[: used[1]]):
                            at = origins[b] + (i + first_row) * self.pitch
                            _fill(dst, at, begin, fill)
                            _fill(dst, at + stop, self.pitch - stop, fill)
                            for q in range(begin, stop):
                                if sw > 1 and not common[0] <= q < common[1]:
                                    T.buffer_store(dst, src[row + self._column(b, q)], [at + q])
                for at in origins:
                    _fill(dst, at + last_row * self.pitch, (rows - last_row) * self.pitch, fill)
            end = self.plane * math.prod(used)  # what is between channels is the last row's right padding
            _fill(dst, c * self.channel + end, self.channel - end, fill)
        _fill(dst, count * self.channel, p.padding[1] + p.padding[3] + LINE, fill)

    def _column(self, phase: int, q):
        """Image column held by column q of a phase."""
        return q * self.p.stride[1] + phase - self.p.padding[1]

    def _run(self, phase: int) -> tuple[int, int]:
        """Columns begin .. stop-1 of a phase that are pixels."""
        left, sw, width = self.p.padding[1], self.p.stride[1], self.p.width
        begin = max(0, -((phase - left) // sw))
        return begin, max(begin, min(self.pitch, -((phase - left - width) // sw)))

    def _copy_row(self, src, dst, row, at, lanes: int) -> None:
        begin, stop = self._run(0)
        if stop == begin:
            return
        step, offsets = spans(stop - begin, lanes)
        one = overrun(stop - begin, lanes)
        more = one - (stop - begin)
        inside = self.p.height * self.p.width + more <= in_planes(self.p)[2] and begin + one <= 2 * self.pitch
        if one and inside and self.p.padding[2]:
            step, offsets = one, [0]  # what is too much is in the next row, which is written later
        for o in offsets:
            T.buffer_store(dst, src[run(row + self._column(0, begin) + o, step)], [run(at + begin + o, step)])


def _fill(dst, start, count: int, value: float) -> None:
    """Padding; short runs unrolled, since most are one or two floats of padding."""
    if count == 0:
        return
    if count <= 4:
        for i in range(count):
            T.buffer_store(dst, T.float32(value), [start + i])
        return
    with T.serial(0, count) as i:
        T.buffer_store(dst, T.float32(value), [start + i])
