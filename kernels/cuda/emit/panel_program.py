"""What the kernels on tiles with borders have in common: their CTA's tile, the copies of a thread, and the way to y."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cuda.emit.fragments import COLUMNS, F16, LANES, ROWS
from kerf.kernels.cuda.emit.panel import Panel
from kerf.kernels.cuda.emit.store import Staging, emit_store, ptx
from kerf.kernels.cuda.emit.window import flat
from kerf.kernels.cuda.layout import VECTOR, out_rows
from kerf.kernels.problem import Problem


class PanelProgram:
    """A function being built: arguments, then ``begin``, the kernel's own loop, and ``finish``."""

    x: Any  # the image, the first parameter

    def __init__(self, p: Problem, panel: Panel):
        self.p, self.panel = p, panel
        self.across, self.down = panel.warp_pixels // COLUMNS, p.n // ROWS

    def end_args(self) -> None:
        """bias, [residual], y: the last parameters."""
        p = self.p
        self.bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        self.residual = T.arg("residual", T.buffer(out_rows(p), F16.dtype)) if p.residual else None
        self.y = T.arg("y", T.buffer(out_rows(p), F16.dtype))
        self.flat = flat(p, self.x, F16.dtype)

    def begin(self, group, tile, thread) -> None:
        """``group`` of block rows and ``tile`` of pixels: shared memory, sums, and what this thread is to do."""
        panel = self.panel
        _, columns, images = panel.tiles
        row, column = tile // images // columns, tile // images % columns
        places = (row * panel.tall, column * panel.wide, tile % images * panel.images)
        self.origin = tuple(T.Bind(place) for place in places)
        self.thread = thread
        self.lane, self.warp = T.Bind(thread % LANES), T.Bind(thread // LANES)
        self.block = T.Bind(group * panel.down + self.warp % panel.down)
        self.number = T.Bind(self.warp // panel.down * panel.warp_pixels)
        shared = T.alloc_buffer((panel.shared_bytes,), "uint8", scope="shared.dyn")
        self.shared = T.decl_buffer((panel.shared_bytes // 2,), F16.dtype, data=shared.data, scope="shared.dyn")
        self.floats = T.decl_buffer((panel.shared_bytes // 4,), "float32", data=shared.data, scope="shared.dyn")
        self.sums = T.alloc_buffer((self.down * self.across * 4,), "float32", scope="local")
        for i in range(self.down * self.across * 4):
            T.buffer_store(self.sums, T.float32(0), [i])
        # where this lane's pixels begin: lanes from 16 name rows of the second 8 numbers of a pair
        position = T.Bind(self.number // panel.images)
        first = panel.place(position // panel.wide, position % panel.wide) + self.number % panel.images
        self.first = T.Bind(first + self.lane // ROWS * (panel.column(1) - panel.column(0)))
        self._copies()

    def _copies(self) -> None:
        """Which vectors of a channel this thread copies: their places in x (of channel 0), and whether they exist."""
        panel, inner = self.panel, self.panel.plane
        self.at_once = max(panel.threads // panel.vectors, 1)  # channels
        self.turn = T.Bind(self.thread // panel.vectors) if self.at_once > 1 else 0  # this thread's among them
        self.mine = []
        for i in range(-(-panel.vectors // panel.threads)):
            vector = T.Bind(self.thread % panel.vectors if self.at_once > 1 else self.thread + i * panel.threads)
            position, rest = vector // (panel.images // VECTOR), vector % (panel.images // VECTOR) * VECTOR
            row, column = position // panel.copied[1], position % panel.copied[1]
            strides = zip(self.origin, inner.stride, inner.padding, (row, column), panel.source_steps, strict=False)
            y, x = (T.Bind(o * s - pad + n * step) for o, s, pad, n, step in strides)
            image = self.origin[2] + rest
            within = [y >= 0, y < inner.size[0], x >= 0, x < inner.size[1], image < inner.batch]
            busy = self.thread < self.at_once * panel.vectors if self.at_once > 1 else vector < panel.vectors
            valid = T.Bind(T.cast(tirx.all(*within), "int32"))
            place = T.Bind((y * inner.size[1] + x) * inner.batch + image)
            self.mine.append((vector, T.Bind(busy), valid, place))

    def products(self, a, b) -> None:
        """Of one instruction's depth: all filters with all pixels of the warp."""
        for n in range(self.across):
            for m in range(self.down):
                sums = [self.sums[(m * self.across + n) * 4 + k] for k in range(4)]
                ptx(F16.ptx, *sums, *(a[4 * m + k] for k in range(4)), b[2 * n], b[2 * n + 1], *sums)

    def finish(self) -> None:
        """Sums, 16 filters at a time, to y."""
        p, panel, inner = self.p, self.panel, self.panel.plane
        staging = Staging(panel.warp_pixels, self.floats, 0, self.warp, self.lane)
        for m in range(self.down):
            staging.store(self.sums, m * self.across * 4)
            staging.wait()
            with staging.vectors() as (row, column):
                channel = T.Bind(self.block * p.n + m * ROWS + row)
                number = self.number + column
                position = number // panel.images
                y = T.Bind(self.origin[0] + position // panel.wide)
                x = T.Bind(self.origin[1] + position % panel.wide)
                image = self.origin[2] + number % panel.images
                pixel = T.Bind((y * inner.out[1] + x) * inner.batch + image)
                within = [channel < p.out_channels, y < inner.out[0], x < inner.out[1], image < inner.batch]
                with T.If(tirx.all(*within)), T.Then():
                    emit_store(p, self.y, self.residual, channel, pixel, staging.load(row, column), self.bias[channel])
            staging.wait()
