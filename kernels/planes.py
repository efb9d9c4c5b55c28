"""Where a direct convolution finds its input: zero-padded planes, split by stride phase, so that every tap of every
output pixel is one fixed offset from that pixel's flat position and runs of pixels load as plain vectors.

Phase (a, b) of a plane holds padded pixels (a + i * stride_h, b + j * stride_w); with stride 1 there is one phase.
With stride 1 the zeros right of a row are the zeros left of the next one (shared pitch), so a 56-wide row with
padding 1 costs 57 floats, not 58. Without padding and stride the input itself serves and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from kernels.problem import Problem


def spans(n: int, lanes: int) -> tuple[int, list[int]]:
    """Vectors covering n consecutive floats: (lanes, offsets). The last one overlaps its neighbour, never the end."""
    while lanes > n:
        lanes //= 2
    return lanes, [min(i * lanes, n - lanes) for i in range(-(-n // lanes))]


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
            return cls(p, False, p.width, p.height * p.width, p.height * p.width)
        if sw == 1:
            pitch = max(p.width + max(left, right), p.out_width)
        else:
            pitch = -(-(p.width + left + right) // sw)
        plane = -(-(p.height + top + bottom) // sh) * pitch
        return cls(p, True, pitch, plane, plane * sh * sw)

    @property
    def pixels(self) -> int:
        """Flat length of the output at this pitch, from the first pixel to the last."""
        return (self.p.out_height - 1) * self.pitch + self.p.out_width

    def tap(self, row, col):
        """Offset of tap (row, col) of the kernel from the output pixel's flat position; ints or TIR expressions."""
        (sh, sw), (dh, dw) = self.p.stride, self.p.dilation
        r, q = row * dh, col * dw
        return (r % sh * sw + q % sw) * self.plane + r // sh * self.pitch + q // sw

    def scratch(self, channels: int) -> int:
        """Floats to allocate for this many channels; the tail is read as the last row's right padding."""
        return channels * self.channel + self.p.padding[1] + self.p.padding[3]

    def emit_copy(self, src, dst, image, first, count, lanes: int, parallel: bool) -> None:
        """Fill ``dst`` (flat) with channels first .. first+count-1 of image ``image`` of ``src`` (n, c, h, w)."""
        p, (sh, sw) = self.p, self.p.stride
        top, left, _, _ = p.padding
        rows, width = self.plane // self.pitch, p.width
        with (T.parallel if parallel else T.serial)(0, count) as c:
            for a in range(sh):
                for b in range(sw):
                    origin = c * self.channel + (a * sw + b) * self.plane
                    begin = max(0, -((b - left) // sw))  # first column of this phase that is a pixel
                    stop = max(begin, min(self.pitch, -((b - left - width) // sw)))
                    # rows begin_row .. stop_row-1 of this phase are rows of the image, the others zero padding
                    begin_row = max(0, -((a - top) // sh))
                    stop_row = max(begin_row, min(rows, -((a - top - p.height) // sh)))
                    for edge, extent in ((0, begin_row), (stop_row, rows - stop_row)):
                        _fill(dst, origin + edge * self.pitch, extent * self.pitch)
                    if stop_row == begin_row:
                        continue
                    with T.serial(0, stop_row - begin_row) as i:
                        at = origin + (i + begin_row) * self.pitch
                        y = (i + begin_row) * sh + a - top
                        _fill(dst, at, begin)
                        _fill(dst, at + stop, self.pitch - stop)
                        if stop == begin:
                            continue
                        x0 = begin * sw + b - left
                        if sw > 1:
                            with T.serial(0, stop - begin) as j:
                                T.buffer_store(dst, src[image, first + c, y, x0 + j * sw], [at + begin + j])
                            continue
                        step, offsets = spans(stop - begin, lanes)
                        for o in offsets:
                            value = src[image, first + c, y, T.ramp(x0 + o, 1, step) if step > 1 else x0 + o]
                            T.buffer_store(dst, value, [T.ramp(at + begin + o, 1, step) if step > 1 else at + begin + o])
        _fill(dst, count * self.channel, p.padding[1] + p.padding[3])


def _fill(dst, start, count: int) -> None:
    """Zeros; short runs unrolled, since most are one or two floats of padding."""
    if count == 0:
        return
    if count <= 4:
        for i in range(count):
            T.buffer_store(dst, T.float32(0), [start + i])
        return
    with T.serial(0, count) as i:
        T.buffer_store(dst, T.float32(0), [start + i])
