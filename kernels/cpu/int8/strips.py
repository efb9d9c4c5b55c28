"""Where an integer convolution finds its pixels, and how they are cut into strips and tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.int8.dot import DOTS, QUAD
from kerf.kernels.cpu.layout import LINE, out_planes
from kerf.kernels.cpu.machine import Machine
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Strips:
    """Geometry, in pixels: ``count`` strips of ``size`` flat output pixels, of which tiles of ``width`` are summed.

    ``lanes``: pixels of one vector, where a machine puts four channels of them side by side at once (dot.py): what is
    left of a strip is then a tile of as many vectors as it needs. 0: tiles are of four vectors. ``folded``: taps are
    channels of their own, each of which lies where the tap reads, and there is one tap.
    """

    planes: Planes
    width: int
    rows: int  # output rows of a strip; 0 where pixels lie as the input's do
    size: int
    count: int
    begin: int = 0  # of the first one
    lanes: int = 0
    folded: bool = False

    @classmethod
    def of(cls, p: Problem, c: Config, machine: Machine) -> list[Strips]:
        """Those of the configuration's width; where one more would be mostly beyond the plane, a narrower one."""
        planes, width, lanes = geometry(p), c["bytes"], lanes_at_once(c, machine)
        if not is_flat(planes):
            rows = min(c["strip"], p.out_height)
            return [cls(planes, width, rows, rows * planes.pitch, -(-p.out_height // rows), 0, lanes, "fold" in c)]
        size = width * min(c["strip"], planes.channel // width)
        left = planes.channel % size
        narrow = next((w for w in (LINE, 2 * LINE) if left <= w < width), 0) if left else 0
        if not narrow:
            return [cls(planes, width, 0, size, -(-planes.channel // size))]
        last = cls(planes, narrow, 0, narrow, 1, planes.channel - narrow, lanes)
        return [cls(planes, width, 0, size, planes.channel // size), last]

    @property
    def vectors(self) -> int:
        """Of a tile that is not what is left of a strip."""
        return self.width // self.lanes if self.lanes else QUAD

    @property
    def tiles(self) -> int:
        """Of ``width``; without ``lanes`` the last one overlaps its neighbour."""
        return self._cut[0] if self.lanes else -(-self.size // self.width)

    @property
    def left(self) -> int:
        """Vectors behind these tiles."""
        return self._cut[1] if self.lanes else 0

    @property
    def _cut(self) -> tuple[int, int]:
        used = self.size - (self.planes.pitch - self.planes.p.out_width if self.rows else 0)
        return divmod(-(-used // self.lanes), self.vectors)

    def tile(self, i):
        """First pixel of tile i."""
        return i * self.width if self.lanes else T.min(i * self.width, max(self.size - self.width, 0))

    @property
    def room(self) -> int:
        """Pixels that sums are kept of."""
        return max(self.size, self.width, self.tiles * self.width + self.left * self.lanes)

    @property
    def region(self) -> int:
        """Pixels of each phase that a strip reads, whole vectors."""
        p = self.planes.p
        reach = 0 if self.folded else max(self.place(tap)[1] for tap in range(p.taps))
        unit = self.lanes or self.width
        return -(-(self.room + reach) // unit) * unit

    @property
    def phases(self) -> int:
        return math.prod(self.planes.phases) if self.planes.copied and not self.folded else 1

    def place(self, tap):
        """(phase, offset in it) of a tap, an int or a TIR expression."""
        if self.folded:
            return 0, 0
        width = self.planes.p.kernel[1]
        return self.planes.place(tap // width, tap % width)

    def first(self, strip):
        """(first pixel of a strip in its phase, first output row or pixel)"""
        if not self.rows:
            at = T.min(self.begin + strip * self.size, self.planes.channel - self.size)
            return at, at
        row = T.min(strip * self.rows, self.planes.p.out_height - self.rows)
        return row * self.planes.pitch, row


def lanes_at_once(c: Config, machine: Machine) -> int:
    """Pixels of a vector whose four channels one instruction puts side by side; 0 where it takes a tree of them."""
    return c["bytes"] // QUAD if "avx512_vbmi" in machine.features and c["bytes"] == 64 else 0


def through_panel(c: Config, n: int, rows: bool) -> bool:
    """Whether channels are put side by side in memory before their products; without a word of it, where more than one
    reads them: sub-rows of a block row, or taps. ``rows``: images are not flat.
    """
    return DOTS[c["dot"]].paired or bool(c.get("panel", rows or n > c["rows"]))


def is_flat(planes: Planes) -> bool:
    """Whether output pixels lie as the input's do: a 1 x 1 kernel's, or what a strided one reads of an image."""
    p = planes.p
    flat = p.taps == 1 and planes.pitch == p.out_width and planes.plane == p.out_height * p.out_width
    return flat and planes.channel == out_planes(p)[2] >= LINE


def geometry(p: Problem) -> Planes:
    """Where the input is read: copied, too, where a plane is less than a vector."""
    planes = Planes.of(p)
    if planes.copied or (p.taps == 1 and planes.channel >= LINE):
        return planes
    return Planes(p, True, p.width, p.height * p.width, -(-p.height * p.width // LINE) * LINE)
