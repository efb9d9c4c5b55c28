"""What tensor-core kernels take, and tile sizes worth measuring for kerf.kernels.cuda.emit.mma, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from tvm.target import Target

from kerf.kernels.config import Config
from kerf.kernels.cuda.emit import gather
from kerf.kernels.cuda.emit.fragments import BY_PRECISION, ROWS, instruction
from kerf.kernels.cuda.emit.stage import Tile, threads_beside
from kerf.kernels.cuda.layout import in_rows, out_rows
from kerf.kernels.problem import Problem

# Kilobytes of shared memory of a multiprocessor (CUDA C++ Programming Guide, compute capabilities); a CTA may have one
# less.
SHARED = {"sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90": 228}
REGISTERS = 128  # for sums and what is on its way through registers, of the 255 of a thread
GRID = 65535  # CTAs along y
PROCESSORS = 132
BUSY = PROCESSORS * 2  # CTAs that keep a large GPU busy
WARPS = 16  # of a multiprocessor, that cover for one another's waiting

# Microseconds (see cost). A chunk through registers took 0.6 where its loads were awaited at once; that it takes 0.4
# now, and a chunk of several slices no longer than one, is a guess.
LAUNCH, CTA = 2.2, 0.23
COPY, COPY_WEIGHT, READ = 0.19e-3, 0.07e-3, 1.16e-3
CHUNK, CHUNK_LOADED, FILL_LOADED = 0.225, 0.4, 0.27
IMAGES = 7.4e6  # bytes of images in a microsecond: what of the memory's 2.4e6 is not hidden behind the rest
WIDEST = 256  # pixels of a tile

HEIGHTS = (16, 32, 64)  # of block rows


def refuses_blocks(p: Problem) -> str | None:
    """Why 1xN blocks do not fit tensor cores; None if they do."""
    if not p.n:
        return "weights are dense"
    if p.groups > 1:
        return f"{p.groups} groups; takes blocks of ungrouped convolutions"
    if p.n not in HEIGHTS:
        return f"blocks of {p.n} rows; tensor cores take {ROWS} filters at once: N = 16, 32 or 64"
    return refuses_size(p)


def refuses_size(p: Problem) -> str | None:
    """Why a layer does not fit tensor cores, whatever its weights; None if it does."""
    if p.precision not in BY_PRECISION:
        return f"precision {p.precision}; tensor cores take {' or '.join(BY_PRECISION)}"
    if out_rows(p)[1] > GRID * WIDEST:
        return f"{out_rows(p)[1]:,} pixels; a grid holds {GRID:,} tiles of {WIDEST}"
    return gather.refuses(p)


def shared_memory(target: Target) -> int:
    """Kilobytes of a multiprocessor; of an unknown architecture the least."""
    return SHARED.get(str(target.attrs.get("arch", "")), min(SHARED.values()))


def configs(p: Problem, target: Target, rows: int) -> Sequence[Config]:
    """For CTAs of ``rows`` filters."""
    found: list[Config] = []
    block_rows = -(-p.out_channels // rows)
    chunks = (16, 32) if instruction(p).bytes == 2 else (16,)  # longer ones need more registers than there are
    sizes = product((WIDEST, 128, 64, 32, 16), (64, 32, 16), (64, 32, 16), (1, 2, 4, 8), chunks, (4, 3, 2), (1, 2, 4))
    for wide, down, across, slices, chunk, stages, repeat in sizes:
        if repeat > block_rows or (slices > 1 and (wide > 64 or repeat > 1 or chunk != chunks[0])):
            continue
        c: Config = {"pixels": wide, "warp_rows": down, "warp_pixels": across, "slices": slices}
        c |= {"chunk": chunk * slices, "stages": stages}
        c |= {"repeat": repeat, "cache": "ca" if p.taps > 1 else "cg"}
        tile = Tile.of(p, c, rows)
        if (
            tile.fits()
            and (stages > 2 or tile.loads)
            and 64 <= tile.threads <= threads_beside(tile.registers)
            and tile.registers <= REGISTERS
            and tile.shared_bytes <= (shared_memory(target) - 1) * 1024
            and -(-out_rows(p)[1] // tile.pixels) <= GRID
        ):
            found.append(c)
    return sorted(found, key=lambda c: cost(p, target, c, rows))


def cost(p: Problem, target: Target, c: Config, rows: int) -> float:
    """Microseconds, as an H100 would take: fitted to 350 measured tiles, nine in ten between 0.6 and 1.35 of it
    (scripts/gpu/gpu_cost.py).
    """
    tile, block_rows = Tile.of(p, c, rows), -(-p.out_channels // rows)
    ctas = -(-block_rows // tile.repeat) * -(-out_rows(p)[1] // tile.pixels)
    threads = min(threads_beside(tile.registers), 512)
    resident = max(min(shared_memory(target) * 1024 // (tile.shared_bytes + 1024), threads // tile.threads, 32), 1)
    entries = (p.nnzb / block_rows if p.n else p.in_channels // p.groups) * p.taps
    chunks = -(-entries // tile.chunk) * tile.repeat
    # what a multiprocessor is busy with: copies to shared memory, and reading them, 128 bytes at a time
    whole = tile.copy * tile.op.bytes / 16  # a copy of less takes as many instructions, but fewer turns
    copied = COPY * max(whole, 0.5) * tile.image / tile.copy + COPY_WEIGHT * tile.weight / tile.op.vector
    turns = tile.rows // tile.warp_rows * tile.chunk * tile.pixels + tile.pixels // tile.warp_pixels * tile.weight
    work = (copied + READ * turns * tile.op.bytes / 128) * chunks + CTA
    images = (np.prod(in_rows(p)) + np.prod(out_rows(p))) * tile.op.bytes
    hidden = max(WARPS / (resident * tile.warps), 1)
    busy = work * max(ctas / PROCESSORS, 1) * hidden + images / IMAGES
    # what it waits for, where there is little to do: a chunk's list, then its copies, before the next chunk's
    waiting = chunks * (CHUNK_LOADED if tile.loads else CHUNK) + (tile.stages - 1) * (FILL_LOADED if tile.loads else 0)
    return LAUNCH + max(busy, waiting * -(-ctas // (PROCESSORS * resident)))
