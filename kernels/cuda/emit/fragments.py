"""How the operands of the tensor cores' instructions lie in a warp's registers (PTX ISA, "mma.m16n8k16", "m16n8k8").

Filters are the instruction's 16 rows, entries of the gathered list its depth, pixels its 8 columns. Lane l = 4 g + t
holds of the weights, four registers each, rows g and g + 8 at depths t and t + 4 (in units of a register: one tf32 or
two f16); of the pixels, two registers, column g at the same depths; of the sums rows g and g + 8 of columns 2 t and
2 t + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kerf.kernels.problem import Problem

LANES, ROWS, COLUMNS = 32, 16, 8


@dataclass(frozen=True)
class Instruction:
    """mma.sync for one precision."""

    ptx: str
    dtype: str  # of images and packed weights
    bytes: int  # of one number
    depth: int  # entries of one instruction

    @property
    def per_register(self) -> int:
        return 4 // self.bytes

    @property
    def vector(self) -> int:
        """Numbers in 16 bytes."""
        return 16 // self.bytes


F16 = Instruction("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "float16", 2, 16)
TF32 = Instruction("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "float32", 4, 8)
BY_PRECISION = {"f16": F16, "tf32": TF32}


def instruction(p: Problem) -> Instruction:
    return BY_PRECISION[p.precision or ""]


def staged_half(pixels: int) -> int:
    """Of 16 filters x ``pixels`` sums in shared memory (store.Staging): floats from a row's even groups of
    4 pixels to its odd ones.
    """
    return pixels // 2 + 4


def staged_row(pixels: int) -> int:
    """Floats from one filter to the next: the least above both halves that is 8 banks behind a multiple of 32."""
    least = staged_half(pixels) + pixels // 2
    return least + (8 - least) % 32


def weight_places(op: Instruction) -> tuple[np.ndarray, np.ndarray]:
    """(row, depth) of what lane l holds as its i-th number of an instruction's weights, (32, 4 * per_register) each."""
    lane, i = np.meshgrid(np.arange(LANES), np.arange(4 * op.per_register), indexing="ij")
    register, part = i // op.per_register, i % op.per_register
    row = lane // 4 + 8 * (register % 2)
    depth = (lane % 4 + 4 * (register // 2)) * op.per_register + part
    return row, depth


def pack_weights(op: Instruction, weights: np.ndarray) -> np.ndarray:
    """(entries, filters) -> (entries / depth, filters / 16, lanes, numbers of a lane), as a warp reads them.

    Raises ValueError for weights that float16 cannot hold.
    """
    entries, filters = weights.shape
    tiles = weights.reshape(entries // op.depth, op.depth, filters // ROWS, ROWS)
    row, depth = weight_places(op)
    packed = tiles.transpose(0, 2, 3, 1)[:, :, row, depth]
    if op is not F16:
        return round_to_tf32(packed)
    largest = float(np.abs(packed).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(f"a weight of {largest:.0f} is more than float16 holds; use --precision tf32")
    return packed.astype(np.float16)


def round_to_tf32(x: np.ndarray) -> np.ndarray:
    """To 10 bits of mantissa, to the nearest, ties away from zero, as cvt.rna.tf32.f32 does."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
