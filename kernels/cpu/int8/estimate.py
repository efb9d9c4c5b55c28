"""Which problems the integer convolutions take, and which configurations are worth measuring, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.target import Target

from kerf.kernels.config import Config
from kerf.kernels.cpu.dense_nc_dense_columns import is_matrix_product
from kerf.kernels.cpu.emit.sharing import splits
from kerf.kernels.cpu.int8.dot import DOTS, QUAD, dots
from kerf.kernels.cpu.int8.quads import MOST_CHANNELS
from kerf.kernels.cpu.int8.strips import Strips, geometry, is_flat, through_panel
from kerf.kernels.cpu.layout import pitch
from kerf.kernels.cpu.machine import Machine, machine_of
from kerf.kernels.problem import Problem

AMONG_PRODUCTS = 1.2  # what shuffles in registers cost, between products
FROM_AFAR = 1.7  # of several sub-rows, whose pixels are not brought near
FLAT_FILL, FILL = 18, 9  # cycles of a quad's vectors that go to the panel, of flat images and of others
LATENCY = 4  # cycles of a product
COPY = 1.5  # cycles of a channel's vector
CACHE_LINE = 64  # bytes
PANEL_SHARE = 0.5  # of the second-level cache, for the panels of a strip
COMPACTED = 6.0  # cycles of a vector of outputs that go through a buffer


def refuses(p: Problem) -> str | None:
    """Why not these types, whatever the layer."""
    if (p.x.dtype, p.w.dtype) != ("u8", "i8"):
        return f"x {p.x}, w {p.w}; computes u8 by i8"
    if p.y.dtype not in ("u8", "f32"):
        return f"y {p.y}; gives u8 or f32"
    if (p.residual_type or p.y).dtype not in ("u8", "f32"):
        return f"a residual of {p.residual_type}; adds u8 or f32"
    return f"{p.in_channels} channels; lists name {MOST_CHANNELS}" if p.in_channels > MOST_CHANNELS else None


def refuses_convolution(p: Problem) -> str | None:
    """As refuses, and matrix products, which have no vectors of pixels."""
    return "a matrix product" if is_matrix_product(p) else refuses(p)


@dataclass(frozen=True)
class Rate:
    """Cycles of a vector of eight outputs, and of each product of one: with a row's list of channels, and densely."""

    output: float
    listed: float
    dense: float


# Fitted to layers of MobileNet-V2 and ResNet-50 on Zen 3 (docs/benchmarks/2026-11-30-int8-avx2.md).
QUADS, FLOATS = Rate(6.0, 1.0, 0.42), Rate(2.5, 1.3, 0.65)


def cycles(p: Problem, rate: Rate, inputs: float, pixels: float, compacted: bool = False) -> float:
    """For comparison of kernels with one another: of layers whose rows read ``inputs`` channels, where ``pixels`` of
    each output are computed, and perhaps brought from longer rows to where they belong.
    """
    products = inputs * p.taps * (rate.listed if p.n else rate.dense)
    return p.batch * p.out_channels * pixels / 8 * (rate.output + (COMPACTED if compacted else 0) + products)


def quads_cycles(p: Problem, inputs: float) -> float:
    """Of the kernels of quads without a dot product in one instruction, which compute whole planes."""
    flat = is_flat(geometry(p))
    return cycles(p, QUADS, inputs, pitch(p.out_height * p.out_width), compacted=not flat)


def configs(p: Problem, target: Target, n: int, inputs: float) -> Sequence[Config]:
    """``n`` outputs of a block row, which read ``inputs`` channels on average."""
    machine = machine_of(target)
    dot, widths = dots(machine)
    planes = geometry(p)
    flat = is_flat(planes)
    fitting = [w for w in widths if not flat or w <= planes.channel]
    found: list[tuple[float, Config]] = []
    for width in fitting:
        heights = (2, 1) if machine.registers <= 16 else (4, 6, 2)
        for height in {min(h, n) for h in heights}:
            for strip in _strips(p, flat, width):
                tile: Config = {"dot": dot, "bytes": width, "rows": height, "strip": strip}
                for c in _ways(tile, flat, n) + _folds(p, tile):
                    for split in splits(target, Strips.of(p, c, machine)[0].count):
                        found.append((_cycles(p, {**c, **split}, machine, n, inputs), {**c, **split}))
    return [c for _, c in sorted(found, key=lambda f: f[0])]


def _ways(c: Config, flat: bool, n: int) -> list[Config]:
    """To the pixels of a block row: a panel of a strip's, side by side, or registers, again for every sub-row and tap.
    Of flat images a strip's pixels may be brought near before.
    """
    if DOTS[c["dot"]].paired:
        return [c]
    found: list[Config] = [c] if flat and c["rows"] >= n else [c, {**c, "panel": 0}]
    return found + ([{**way, "near": 1} for way in found] if flat and c["strip"] == 1 else [])


def _folds(p: Problem, c: Config) -> list[Config]:
    """Taps as channels, where quads of channels would be a quarter empty or more. Their panels are of few rows."""
    inputs, whole = p.in_channels * p.taps, -(-p.in_channels // QUAD) * QUAD * p.taps
    if p.n or p.groups > 1 or p.taps == 1 or inputs > whole * 0.75:
        return []
    return [{**c, "fold": 1}]


def _strips(p: Problem, flat: bool, width: int) -> list[int]:
    if flat:
        return [1, 2, 4]
    heights = {-(-p.out_height // 2**i) for i in range(8 if _folds(p, {}) else 4)}
    return sorted(heights, reverse=True)


def _cycles(p: Problem, c: Config, machine: Machine, n: int, inputs: float) -> float:
    """Estimate: two products of vectors a cycle, or two shuffles, or two stores; caches by the size of panels."""
    blocks, parts = -(-p.out_channels // n), c.get("parts", 1)
    blocks = -(-blocks // parts) if c.get("split") == "rows" else blocks
    cycles = 0.0
    for s in Strips.of(p, c, machine):
        strips = -(-s.count // parts) if c.get("split") == "pixels" else s.count
        copy = COPY * p.in_channels if c.get("near") else 0.0
        cycles += strips * (copy + blocks * _strip_cycles(p, c, s, machine, n, inputs / QUAD))
    return p.batch * cycles


def _strip_cycles(p: Problem, c: Config, s: Strips, machine: Machine, n: int, quads: float) -> float:
    """Of a strip of a block row."""
    each = 1.5 if c["dot"] == "maddubs" else 1.0  # instructions of a product beside the shuffles
    taps = p.taps
    if s.folded:
        quads, taps = -(-p.in_channels * p.taps // QUAD), 1
    fill = quads * s.phases * (s.region / s.width) * (FILL if s.rows else FLAT_FILL)
    if not through_panel(c, n, bool(s.rows)):
        afar = n > c["rows"] and not s.rows and not c.get("near")
        fill, each = 0.0, each * (FROM_AFAR if afar else AMONG_PRODUCTS)
    tiles = s.tiles * _tile_cycles(quads * taps, c["rows"], s.vectors, each)
    if s.left:
        tiles += _tile_cycles(quads * taps, c["rows"], s.left, each)
    panel = quads * s.phases * s.region * QUAD
    again = 1.15 if n > c["rows"] else 1.02  # read by every sub-row, or once
    far = 1.0 if panel <= machine.l1 * 0.75 else again if panel <= machine.l2 * PANEL_SHARE else 1.5
    if not s.rows and c["dot"] != "maddubs":
        far *= _distance(p, c, s, machine)
    sums = tiles * -(-n // c["rows"]) * far
    if s.rows:
        sums += s.rows * -(-p.out_width // min(c["bytes"], p.out_width)) * n * 6
    return fill + sums


def _distance(p: Problem, c: Config, s: Strips, machine: Machine) -> float:
    """What products of a flat image wait for: vectors that straddle cache lines, lines that L1 does not hold."""
    straddling = not c.get("near") and s.planes.channel % CACHE_LINE != 0
    lines = p.in_channels * s.size * (2 if straddling else 1)
    if lines > machine.l1 * 0.8:
        return 1.45 if straddling else 1.25
    return 1.05 if straddling else 1.0


def _tile_cycles(steps: float, rows: int, vectors: int, each: float) -> float:
    """``steps``: quads by taps. Loads of weights and pixels beside the products; sums wait for the ones before."""
    products = max(rows * vectors * each * max(1.0, (vectors + rows) / (3 * rows)), LATENCY)
    return steps * products + 12 + 2.5 * vectors * rows
