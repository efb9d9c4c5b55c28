"""Config: what tuning chooses for a layer, by name. The keys of records, manifests and pretuned choices."""

from __future__ import annotations

from typing import Any, TypedDict


class Config(TypedDict, total=False):
    """A kernel takes the keys it names in its file, and no others. As JSON it is a plain object."""

    # Convolutions on CPUs (kerf.kernels.cpu)
    lanes: int  # float32 of a vector
    rows: int  # output channels of a register tile; of the depthwise kernel, output rows
    vectors: int  # of pixels in a register tile; of dense_nc_dense_columns, of output channels
    pixels: Any  # how pixels become vectors: "flat", "tail", "rows" (emit/tiling.py), "columns" (emit/columns.py);
    # on GPUs a number: those of a CTA's tile
    order: str  # which loop is outermost: "blocks", block rows, or "tiles" of pixels
    panel: int  # input channels swept at a time
    parts: int  # threads that share the work, where there are several
    split: str  # what they cut: "rows", block rows, or "pixels"
    high: int  # output rows of a register tile of "columns"
    groups: int  # bands of the image that a vector of "columns" has pixels of
    strip: int  # output rows of a band whose copies are made at a time
    chains: int  # blocks that dense_nc_bsr_rows has in flight

    # Of bytes (kerf.kernels.cpu.int8), with rows, parts and split as above
    dot: str  # the instruction (int8/dot.py)
    bytes: int  # of a vector, and pixels of a tile
    band: int  # block rows that share quads of channels
    fold: int  # 1: every tap of a channel is a channel of its own
    near: int  # 1: a strip's pixels are copied to where no vector straddles cache lines
    # panel: 0 where channels are put side by side in registers, not in memory
    # strip: output rows, or vectors of pixels, whose channels lie side by side at a time

    # On GPUs (kerf.kernels.cuda)
    threads: int  # of a CTA
    warp_rows: int  # filters of a warp
    warp_pixels: int
    slices: int  # sets of warps that share a chunk's entries
    chunk: int  # entries of the gathered list multiplied at a time
    stages: int  # chunks in flight
    repeat: int  # block rows of a CTA, one after the other
    cache: str  # of copies of the image: "ca", kept in the first-level cache, or "cg"
    across: int  # warps side by side, along pixels
    down: int  # block rows of a CTA, side by side
    images: int  # of the batch, in a tile
    wide: int  # columns of a tile
    channels: int  # of a panel
