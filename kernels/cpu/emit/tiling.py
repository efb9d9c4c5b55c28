"""How the flat pixels of a plane are cut into vectors and register tiles, and what a tile costs by estimate.

"flat" runs over row ends (cheapest when a row is no multiple of the vector; of a padded input the few columns past a
row's end are computed and dropped on the way from scratch to the output), "tail" does so too but sums the one to four
pixels that are left over in vectors along the block's rows (49 pixels are 3 vectors of 16 and one pixel: a fourth
vector would waste a quarter), "rows" keeps every vector inside one row and stores at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.emit.planes import Planes
from kerf.kernels.cpu.layout import pitch
from kerf.kernels.cpu.machine import Machine
from kerf.kernels.vector import covering, even_tiles

MAX_TAIL = 4  # pixels summed along rows; more are cheaper as one more vector of pixels
MET = 0.85  # of a kernel's rows, at which a question for each is worth it
FETCHED = 0.2  # of a wait is left when pixels are asked for an input channel ahead
VISIT_CYCLES = 50  # of entering and leaving a block row's loop: mispredicted exit, first loads, bounds


@dataclass(frozen=True)
class Tiling:
    """Cut of the output pixels into vectors, and of the vectors into tiles of nearly equal size."""

    lanes: int
    count: int  # vectors in all
    per_row: int  # vectors in an output row; 0 = flat
    tiles: tuple[tuple[int, int, int], ...]  # (first vector, tiles, vectors per tile)
    tail: int  # pixels after the last vector, summed with the last tile
    blank: int  # floats after the last vector's whole lanes that the last tile fills with zeros
    planes: Planes

    @classmethod
    def of(cls, planes: Planes, pixels: str, lanes: int, vectors: int) -> Tiling:
        p, tail = planes.p, 0
        if pixels == "rows":
            lanes, per_row = covering(p.out_width, lanes)
            count = per_row * p.out_height
        else:
            tail = planes.pixels % lanes if pixels == "tail" else 0
            lanes, count = covering(planes.pixels - tail, lanes)
            per_row = 0
        tiles = even_tiles(count, vectors)
        cut = cls(lanes, count, per_row, tuple(tiles), tail, 0, planes)
        blank = pitch(planes.pixels) - count * lanes if cut.covers else 0
        if (tail or blank) and tiles[-1][1] > 1:  # the last tile ends the plane, so it gets a loop of its own
            first, n, size = tiles.pop()
            tiles += [(first, n - 1, size), (first + (n - 1) * size, 1, size)]
        return cls(lanes, count, per_row, tuple(tiles), tail, blank, planes)

    def place(self, i) -> tuple[Any, Any]:
        """(input offset, output offset) in floats of vector i (TIR expression)."""
        p = self.planes.p
        if self.per_row:  # the last vector of a row overlaps its neighbour
            row, x = i // self.per_row, T.min(i % self.per_row * self.lanes, p.out_width - self.lanes)
            return row * self.planes.pitch + x, row * p.out_width + x
        at = i * self.lanes
        if not self.covers:
            at = T.min(at, self.planes.pixels - self.tail - self.lanes)
        return at, at

    @property
    def covers(self) -> bool:
        """Whether vectors are stored whole, without overlap: input and output planes have room for the last one."""
        if self.per_row or self.needs_scratch or not (self.planes.copied or self.planes.p.taps == 1):
            return False
        return pitch(self.planes.pixels) >= self.count * self.lanes

    def ends(self, first: int, vectors: int) -> bool:
        """Whether the tile of ``vectors`` from vector ``first`` ends the plane."""
        return first + vectors == self.count

    @property
    def total(self) -> int:
        """Tiles in all."""
        return sum(n for _, n, _ in self.tiles)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(tiles, vectors of each); a tail's pixels count as vectors: summed along rows they cost as much."""
        return [(n, v + self.tail * self.ends(first, v)) for first, n, v in self.tiles]

    @property
    def skips(self) -> bool:
        """Whether tiles leave out rows of the kernel that read padding alone, which dilation makes many of. Not of
        integers, whose padding is the zero point, and counts.
        """
        return bool(self.per_row) and self.planes.met < MET and not self.planes.p.x.quantised

    @property
    def needs_scratch(self) -> bool:
        return not self.per_row and self.planes.pitch != self.planes.p.out_width

    @property
    def aligned(self) -> bool:
        """Whether input vectors start on their own size."""
        return self.planes.p.taps == 1 and self.covers

    def cycles(
        self, machine: Machine, rows: int, inputs: float, panels: int, reach: int, fetched: bool = False
    ) -> float:
        """Estimate for one row of tiles: ``rows`` output channels, ``inputs`` input channels, ``reach`` floats of input
        between two uses of the same one, ``fetched``: ahead of its turn.

        Two multiply-adds and two loads a cycle; a vector across two cache lines is two loads, and the second-level
        cache delivers a line every other cycle at best. Only ranks configurations; measured ones are never estimated.
        """
        taps, total = self.planes.p.taps * (self.planes.met if self.skips else 1), 0.0
        width = 1 if self.lanes >= 8 else 8 / self.lanes  # NEON's narrower registers are compared among themselves
        for first, n, vectors in self.tiles:
            tail = self.tail * -(-rows // 4) if self.ends(first, vectors) else 0
            lines = vectors * (1 if self.aligned else 1.9)
            step = max(rows * vectors / 2, (lines + rows + 1) / 2, 4) + tail / 2 + 0.6
            step += 0 if self.aligned else 0.18 * rows * vectors / 2  # splits delay what depends on them
            wait = far(machine, reach) * (1 if self.aligned else 1.5) * self.planes.p.kernel[0]
            wait *= FETCHED if fetched else 1
            visits = panels * (VISIT_CYCLES + 1.2 * rows * vectors)
            total += n * (visits + inputs * (taps * step + wait * vectors)) * width
        return total


def far(machine: Machine, floats: int) -> float:
    """Cycles that a vector waits when so many floats were read since it was last used."""
    if floats <= machine.l1_floats:
        return 0.0
    if floats <= machine.l2_floats // 2:
        return 0.7
    return 1.0 if floats <= machine.l2_floats else 2.5
