"""What tensor-core kernels take, and tile sizes worth measuring for kernels.cuda.mma, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tvm.target import Target

from kernels.cuda import gather
from kernels.cuda.fragments import BY_PRECISION, LANES, ROWS, instruction
from kernels.cuda.layout import out_rows
from kernels.cuda.tile import Tile
from kernels.problem import Problem

# Kilobytes of shared memory of a multiprocessor (CUDA C++ Programming Guide, compute capabilities); a CTA may have one
# less.
SHARED = {"sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90": 228}
SUMS = 64  # accumulators of a thread at most, which leave an SM room for 512 threads
BUSY = 132 * 2  # CTAs that keep a large GPU busy


HEIGHTS = (16, 32, 64)  # of block rows


def refuses_blocks(p: Problem) -> str | None:
    """Why 1xN blocks do not fit tensor cores; None if they do."""
    if not p.block:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; 1xN blocks are defined on ungrouped convolutions"
    if p.block not in HEIGHTS:
        return f"blocks of {p.block} rows; tensor cores take {ROWS} filters at once: N = 16, 32 or 64"
    return refuses_size(p)


def refuses_size(p: Problem) -> str | None:
    """Why a layer does not fit tensor cores, whatever its weights; None if it does."""
    if p.precision not in BY_PRECISION:
        return f"precision {p.precision}; tensor cores take {' or '.join(BY_PRECISION)}"
    return gather.refuses(p)


def shared_memory(target: Target) -> int:
    """Kilobytes of a multiprocessor; of an unknown architecture the least."""
    return SHARED.get(str(target.attrs.get("arch", "")), min(SHARED.values()))


def configs(p: Problem, target: Target, rows: int) -> Sequence[dict]:
    """For CTAs of ``rows`` filters."""
    found = []
    block_rows = -(-p.out_channels // rows)
    chunks = (16, 32) if instruction(p).bytes == 2 else (16,)  # longer ones need more registers than there are
    sizes = product((256, 128, 64, 32), (64, 32, 16), (64, 32, 16), chunks, (4, 3), (1, 2, 4))
    for wide, down, across, chunk, stages, repeat in sizes:
        if repeat > block_rows:
            continue
        c = {"pixels": wide, "warp_rows": down, "warp_pixels": across, "chunk": chunk, "stages": stages}
        c |= {"repeat": repeat, "cache": "ca" if p.taps > 1 else "cg"}
        tile = Tile.of(p, c, rows)
        small = tile.shared_bytes <= (shared_memory(target) - 1) * 1024 and down * across // LANES <= SUMS
        if tile.fits() and small and tile.threads >= 64:
            found.append(c)
    return sorted(found, key=lambda c: cost(p, target, c, rows))


def cost(p: Problem, target: Target, c: dict, rows: int) -> float:
    """Relative; as it was fastest on an H100 (docs/benchmarks): large warp tiles, short chunks, many stages."""
    tile, pixels = Tile.of(p, c, rows), out_rows(p)[1]
    tiles = -(-pixels // tile.pixels)
    resident = min(shared_memory(target) * 1024 // (tile.shared_bytes + 1024), 512 // tile.threads, 32)
    block_rows = -(-p.out_channels // rows)
    idle = max(BUSY / (-(-block_rows // tile.repeat) * tiles), 1.0)  # too few CTAs
    hidden = max(12 / max(resident * tile.warps, 1), 1.0)  # too few warps to cover the waiting
    waste = tiles * tile.pixels / pixels
    # numbers through shared memory per multiply-add: a warp reads its weights and pixels, a CTA writes both
    traffic = 1 / tile.warp_rows + 1 / tile.warp_pixels + 1 / rows + 1 / tile.pixels
    # a row's chunks, before which nothing, and behind which only stores are under way
    chunks = (p.nnzb / block_rows if p.block else p.in_channels // p.groups) * p.taps / tile.chunk
    short = 1 + tile.chunk / 256 - c["stages"] / 64 + 4 / (chunks * tile.repeat + 4) + tile.repeat / 64
    return waste * idle * hidden * short * (traffic + 1 / 32)
