"""Where an integer convolution finds its pixels, and how they are cut into strips and tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import LINE
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Strips:
    """Geometry, in pixels: ``count`` strips of ``size`` flat output pixels, of which tiles of ``width`` are summed."""

    planes: Planes
    width: int
    rows: int  # output rows of a strip; 0 where planes are read as they are
    size: int
    count: int
    begin: int = 0  # of the first one

    @classmethod
    def of(cls, p: Problem, c: Config) -> list[Strips]:
        """Those of the configuration's width; where one more would be mostly beyond the plane, a narrower one."""
        planes, width = geometry(p), c["bytes"]
        if planes.copied:
            rows = min(c["strip"], p.out_height)
            return [cls(planes, width, rows, rows * planes.pitch, -(-p.out_height // rows))]
        size = width * min(c["strip"], planes.channel // width)
        left = planes.channel % size
        narrow = next((w for w in (LINE, 2 * LINE) if left <= w < width), 0) if left else 0
        if not narrow:
            return [cls(planes, width, 0, size, -(-planes.channel // size))]
        last = cls(planes, narrow, 0, narrow, 1, planes.channel - narrow)
        return [cls(planes, width, 0, size, planes.channel // size), last]

    @property
    def tiles(self) -> int:
        return -(-self.size // self.width)

    def tile(self, i):
        """First pixel of tile i; the last one overlaps its neighbour."""
        return T.min(i * self.width, max(self.size - self.width, 0))

    @property
    def room(self) -> int:
        """Pixels that sums are kept of."""
        return max(self.size, self.width)

    @property
    def region(self) -> int:
        """Pixels of each phase that a strip reads, whole vectors."""
        p = self.planes.p
        reach = max(self.place(tap)[1] for tap in range(p.taps))
        return -(-(self.room + reach) // self.width) * self.width

    @property
    def phases(self) -> int:
        return math.prod(self.planes.phases) if self.planes.copied else 1

    def place(self, tap: int) -> tuple[int, int]:
        """(phase, offset in it) of a tap."""
        return self.planes.place(*divmod(tap, self.planes.p.kernel[1]))

    def first(self, strip):
        """(first pixel of a strip in its phase, first output row or pixel)"""
        if not self.rows:
            at = T.min(self.begin + strip * self.size, self.planes.channel - self.size)
            return at, at
        row = T.min(strip * self.rows, self.planes.p.out_height - self.rows)
        return row * self.planes.pitch, row


def geometry(p: Problem) -> Planes:
    """Where the input is read: copied, too, where a plane is less than a vector."""
    planes = Planes.of(p)
    if planes.copied or (p.taps == 1 and planes.channel >= LINE):
        return planes
    return Planes(p, True, p.width, p.height * p.width, -(-p.height * p.width // LINE) * LINE)
