"""conv2d_chwn_bsr_panels: block-sparse convolution on tensor cores, gathered from shared memory (emit/panel.py).

    for group of block rows, tile of pixels:                      # one CTA each; a warp has one of these block rows
        for panel of channels:                                    # ``stages`` of them in flight, by cp.async
            image = x[panel, tile and its border]                 # as it is, zeros outside
            for 16 entries of the block row's list in this panel:
                sums += weights.T @ image[entries' channels, shifted by their taps]     # ldmatrix gathers, mma.sync
        y = activation(sums + bias + residual)

Entries are ordered so that the eight rows of a matrix lie in different banks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import tvm
from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.fragments import F16, LANES, ROWS
from kerf.kernels.cuda.emit.panel import Panel, block_rows, pack, room
from kerf.kernels.cuda.emit.panel_program import PanelProgram
from kerf.kernels.cuda.emit.pipeline import drain
from kerf.kernels.cuda.emit.store import ptx, resident
from kerf.kernels.cuda.emit.tile_sizes import BUSY, GRID, refuses_blocks, shared_memory
from kerf.kernels.cuda.layout import VECTOR, in_rows
from kerf.kernels.problem import Problem

__all__ = ["configs", "name", "pack", "prim_func", "refuses"]

name = "conv2d_chwn_bsr_panels"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := refuses_blocks(p):
        return reason
    if p.precision != "f16":
        return f"precision {p.precision}; ldmatrix gathers numbers of 16 bits"
    if p.batch % VECTOR and not gather.pointwise(p):
        return f"{p.batch} images; those of a position must fill vectors of {VECTOR}"
    return None if configs(p, target) else "no tile fits into shared memory"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    pointwise = gather.pointwise(p)
    images = [VECTOR] if pointwise else [n for n in (16, 8, 32) if p.batch % n == 0]
    most = -(-p.out_channels // p.n)
    found: list[Config] = []
    for down, across, pixels, n, channels, stages in product(
        (8, 4, 2, 1, 16), (1, 2, 4), (64, 32), images, (256, 128, 64, 32, 16), (2, 3, 4)
    ):
        if down > 1 and down >= 2 * most:
            continue
        positions = across * pixels // n
        for wide in [positions] if pointwise else (4, 2, 8):
            c: Config = {"down": down, "across": across, "warp_pixels": pixels, "images": n, "wide": wide}
            c |= {"channels": min(channels, p.in_channels), "stages": stages}
            if (channels >= 2 * p.in_channels and channels > 16) or stages > max(-(-p.in_channels // channels), 2):
                continue  # the same as a smaller one
            if positions % wide or not Panel.of(p, c).fits() or not 128 <= Panel.of(p, c).threads <= 512:
                continue
            if Panel.of(p, c).vectors > Panel.of(p, c).threads:  # places of several copies need too many registers
                continue
            if prod(Panel.of(p, c).tiles) > GRID:
                continue
            if Panel.of(p, c).shared_bytes <= (shared_memory(target) - 1) * 1024 and p.n * pixels // LANES <= 64:
                found.append(c)
    found = list({str(c): c for c in found}.values())
    return sorted(found, key=lambda c: cost(p, target, c))


def cost(p: Problem, target: Target, c: Config) -> float:
    """Relative; a rough guide to what was fastest on an H100 (docs/benchmarks)."""
    panel = Panel.of(p, c)
    inner, groups = panel.plane, block_rows(p, panel) // panel.down
    tiles = prod(panel.tiles)
    numbers = inner.batch * inner.out[0] * inner.out[1]
    waste = tiles * panel.pixels / numbers * (block_rows(p, panel) * p.n / p.out_channels)
    resident = min(shared_memory(target) * 1024 // (panel.shared_bytes + 1024), 1024 // panel.threads * 2, 16)
    warps = max(resident, 1) * panel.threads // LANES
    # bytes of x and of weights that a CTA fetches, per multiply-add that it makes
    density = p.nnzb * p.n / (p.out_channels * p.in_channels)
    made = panel.pixels * panel.down * p.n * p.taps * max(density, 0.01)
    fetched = panel.vectors * VECTOR / made + 1 / panel.warp_pixels / panel.across
    filling = 1 + 8 / max(density * panel.channels * p.taps, 1)  # steps that zeros fill up
    return waste * filling * max(BUSY / (tiles * groups), 1.0) * max(16 / warps, 1.0) * (fetched + 1 / 24)


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    """(x, data, offsets, starts, bias, [residual], y)"""
    panel = Panel.of(p, c)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        build = _Program(p, panel)
        with (
            T.launch_thread("blockIdx.x", block_rows(p, panel) // panel.down) as group,
            T.launch_thread("blockIdx.y", prod(panel.tiles)) as tile,
            T.launch_thread("threadIdx.x", panel.threads) as thread,
            resident(panel.threads, p.n * panel.warp_pixels // LANES, 384 if panel.threads <= 128 else 512),
        ):
            build.emit(group, tile, thread)
    return builder.get()


class _Program(PanelProgram):
    """The function being built."""

    def __init__(self, p: Problem, panel: Panel):
        super().__init__(p, panel)
        self.steps, self.lists = room(p, panel), block_rows(p, panel) * panel.panels
        self.x = T.arg("x", T.buffer(in_rows(p), F16.dtype))
        self.data = T.arg("data", T.buffer((self.steps, F16.depth * p.n), F16.dtype))
        self.offsets = T.arg("offsets", T.buffer((self.steps * F16.depth,), "int32"))
        self.starts = T.arg("starts", T.buffer((self.lists + 1,), "int32"))
        self.end_args()
        self.words = T.decl_buffer((self.steps * F16.depth * p.n // 2,), "uint32", data=self.data.data)

    def emit(self, group, tile, thread) -> None:
        panel = self.panel
        self.begin(group, tile, thread)
        panels, ahead = panel.panels, panel.stages - 1
        self._registers()
        for stage in range(ahead):
            if stage < panels:
                self._fetch(stage, stage)
            ptx("cp.async.commit_group")
        with T.serial(0, panels) as i:
            begin, end = T.Bind(self.bounds[0]), T.Bind(self.bounds[1])
            following = T.Bind(self.starts[T.min(self.list + i + 2, self.lists)])
            ptx("cp.async.wait_group", ahead - 1)
            T.evaluate(script.cuda.cta_sync())
            if panels > ahead:
                with T.If(i + ahead < panels), T.Then():
                    self._fetch(i + ahead, (i + ahead) % panel.stages)
            ptx("cp.async.commit_group")
            self._multiply(begin, end, T.Bind(i % panel.stages * panel.stage + self.first))
            T.buffer_store(self.bounds, end, [0])
            T.buffer_store(self.bounds, following, [1])
        drain()
        self.finish()

    def _fetch(self, panel_number, stage) -> None:
        """Start the copies of a panel into a stage."""
        p, panel = self.p, self.panel
        pitch, whole = in_rows(p)[1], p.in_channels % panel.channels == 0
        for vector, busy, valid, place in self.mine:
            rounds = -(-panel.channels // self.at_once)
            with T.If(busy), T.Then(), T.unroll(0, rounds) as i:
                channel = self.turn + i * self.at_once
                exists = [] if rounds * self.at_once == panel.channels else [channel < panel.channels]
                number = panel_number * panel.channels + channel
                with T.If(tirx.all(*exists) if exists else True), T.Then():
                    ok = valid if whole else valid * T.cast(number < p.in_channels, "int32")
                    to = self.shared.ptr_to([stage * panel.stage + channel * panel.row + vector * VECTOR])
                    source = self.flat.ptr_to([(place + number * pitch) * ok])  # an address outside x is never formed
                    ptx("cp.async.cg.shared.global", to, source, 16, T.cast(ok * 16, "uint32"))

    def _registers(self) -> None:
        """Weights and places of a step are asked for one step ahead, the ends of lists one panel ahead. A block row's
        lists follow one another, so that this goes on from panel to panel.
        """
        words = F16.depth * self.p.n // 2 // LANES  # of a lane in a step
        self.a, self.next_a = (T.alloc_buffer((words,), "uint32", scope="local") for _ in range(2))
        self.next_at = T.alloc_buffer((1,), "int32", scope="local")
        self.b = T.alloc_buffer((self.across * 2,), "uint32", scope="local")
        self.bounds = T.alloc_buffer((2,), "int32", scope="local")
        self.list = T.Bind(self.block * self.panel.panels)
        for k in range(2):
            T.buffer_store(self.bounds, self.starts[self.list + k], [k])
        self._ask(self.bounds[0])

    def _ask(self, step) -> None:
        step = T.Bind(T.min(step, self.steps - 1))  # behind the last list nothing is used
        for m in range(self.down):
            source = step * (F16.depth * self.p.n // 2) + (m * LANES + self.lane) * 4
            T.buffer_store(self.next_a, self.words[T.ramp(source, 1, 4)], [T.ramp(4 * m, 1, 4)])
        T.buffer_store(self.next_at, self.offsets[step * F16.depth + self.lane % ROWS], [0])

    def _multiply(self, begin, end, base) -> None:
        """Steps of the block row's list, on the panel at ``base``."""
        a, b = self.a, self.b
        with T.serial(begin, end) as step:
            for m in range(self.down):
                T.buffer_store(a, self.next_a[T.ramp(4 * m, 1, 4)], [T.ramp(4 * m, 1, 4)])
            place = T.Bind(base + self.next_at[0])
            self._ask(step + 1)
            for n in range(0, self.across, 2):
                registers = [b[2 * n + k] for k in range(4)]
                to = self.shared.ptr_to([place + self.panel.column(n)])
                ptx("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", *registers, to)
            self.products(a, b)
