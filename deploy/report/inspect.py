"""What is in a file: element and block density of every convolution and dense layer, and what they will bring.

A block is n consecutive output kernels at one input channel (1xN pruning, Lin et al., TPAMI 2022). Element density says
how much was pruned; block density says how much of it a kernel can skip: in a block-pruned file the two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerf.deploy.report.stored_weights import Stored, stored
from kerf.errors import BadInput
from kerf.kernels.bsr import kept_blocks

BREAK_EVEN = {1: 0.59, 2: 0.82, 4: 0.92, 8: 0.97, 16: 0.96, 32: 0.95}  # N -> density
EMPTY = 0.08  # of the dense kernel's time
SIZES = (1, 2, 4, 8, 16)  # N that every layer is looked at for


@dataclass(frozen=True)
class InspectedLayer:
    """One weight of a file. Shares are in [0, 1]."""

    name: str
    op: str  # "conv", "depthwise", "grouped", "dense"
    shape: tuple[int, ...]  # (out, in per group, *kernel)
    numbers: str  # that kerf computes it with: "int8" or "f32"
    macs: int | None  # multiply-accumulates of one image as if nothing were zero; None in a checkpoint
    parameters: int
    zeros: float  # share of elements
    zero_blocks: dict[int, float]  # N -> share of blocks of N output kernels
    expected_gain: float | None  # over kerf's dense kernel; None for a layer that will run dense


@dataclass(frozen=True)
class Inspection:
    """What each layer of a file holds, for blocks of ``n`` output kernels; ``notes`` sum it up."""

    path: Path
    n: int
    layers: tuple[InspectedLayer, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What kerf-deploy inspect --json prints."""
        layers = [
            asdict(layer)
            | {"shape": list(layer.shape), "zero_blocks": {str(n): z for n, z in layer.zero_blocks.items()}}
            for layer in self.layers
        ]
        return {"file": str(self.path), "n": self.n, "layers": layers, "notes": list(self.notes)}

    def __repr__(self) -> str:
        sparse = sum(layer.expected_gain is not None for layer in self.layers)
        return f"Inspection({str(self.path)!r}, n={self.n}: {len(self.layers)} layers, {sparse} gain from zero blocks)"


def inspect(
    path: str | Path, n: int = 4, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None
) -> Inspection:
    """What each layer of an .onnx file or a .safetensors checkpoint holds, and what its zero blocks will bring.

    n: output kernels of a block. shapes, batch: sizes of inputs that the file leaves open, by name, and of their first
    one (1). The layers are those that kerf.compile finds; a note says which others there are, and why. Needs neither
    torch nor TVM's compiler.

    Raises FileNotFoundError, or BadInput for a file that cannot be read or leaves sizes open, a bundle (its manifest
    says what computes each layer) or n < 1.
    """
    path = Path(path)
    refuse(n)
    if (path / "manifest.json").is_file():
        raise BadInput(f"{path}: a bundle, whose weights are packed; give the file that it was made of")
    found, refused = stored(path, shapes, batch)
    measured = [measure(s, n) for s in found]
    sizes = (n, *(other for other in SIZES if other != n))
    layers = []
    for s, density in zip(found, measured):
        gain = expected_gain(density.block, n)
        sparse = s.holds_blocks(n) and gain > 1 and density.zero_blocks
        layers.append(
            InspectedLayer(
                name=density.name,
                op=density.op,
                shape=density.shape,
                numbers=s.numbers,
                macs=s.macs,
                parameters=math.prod(density.shape),
                zeros=1 - density.element,
                zero_blocks={size: 1 - float(kept_blocks(s.weight, size).mean()) for size in sizes},
                expected_gain=gain if sparse else None,
            )
        )
    return Inspection(path, n, tuple(layers), (*notes(layers, measured, n), *refused))


def notes(layers: Sequence[InspectedLayer], measured: Sequence[LayerDensity], n: int) -> list[str]:
    """Sums, what the gains rest on, and a warning where zeros lie so that no kernel can skip them."""
    macs = [layer.macs for layer in layers if layer.macs]
    total = f"{len(layers)} layers, {sum(layer.parameters for layer in layers) / 1e6:.2f} M weights"
    said = [total + (f", {sum(macs) / 1e6:.1f} M MACs" if macs else "")]
    said.append("gains: over kerf's dense kernel, expected from the break-even densities of one AVX-512 machine")
    loose = [density for density in measured if scattered(density)]
    if loose:
        said.append(
            f"warning: in {len(loose)} layers most zeros are not in blocks of {n} (e.g. {loose[0].name}), so kernels "
            f"cannot skip them. Another N may fit; or prune with imagenet.py --N {n} --rearrange"
        )
    return said


@dataclass(frozen=True)
class LayerDensity:
    """One weight of the file, as output x input x kernel. Densities are shares of non-zeros, in [0, 1]."""

    name: str  # the node's name
    op: str  # "conv", "depthwise", "grouped", "dense"
    shape: tuple[int, ...]  # (out, in per group, *kernel)
    blocks: int  # all blocks, zero or not
    zero_blocks: int
    element: float  # share of elements that are not zero

    @property
    def block(self) -> float:
        """Share of blocks with at least one non-zero."""
        return 1.0 - self.zero_blocks / self.blocks


def densities(
    path: str | Path, n: int, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None
) -> list[LayerDensity]:
    """Element and block density per layer, in the file's order, for blocks of `n` output kernels.

    shapes, batch: as ``inspect``. Outputs that `n` does not divide end in a short block row. Raises FileNotFoundError,
    or BadInput for a file that cannot be read or n < 1.
    """
    refuse(n)
    return [measure(s, n) for s in stored(Path(path), shapes, batch).layers]


def measure(s: Stored, n: int) -> LayerDensity:
    """Counts zero blocks."""
    kept = kept_blocks(s.weight, n)
    zero = int(kept.size - kept.sum())
    return LayerDensity(s.name, s.op, s.weight.shape, kept.size, zero, float(np.mean(s.weight != 0)))


def expected_gain(density: float, n: int) -> float:
    """How many times faster than kerf's dense kernel a convolution with this block density is likely to be.

    A line through the break-even density of N and what an empty layer still costs, both medians of
    scripts/bench/break_even.py on one machine (docs/benchmarks): below 1, the dense kernel is taken instead.
    """
    known = min(BREAK_EVEN, key=lambda k: abs(math.log(k / n)))
    return 1 / (EMPTY + (1 - EMPTY) * density / BREAK_EVEN[known])


def scattered(layer: LayerDensity) -> bool:
    """Whether zeros are there and mostly not in blocks: a kernel cannot skip them."""
    return layer.op == "conv" and layer.element < 0.8 and layer.zero_blocks / layer.blocks < (1 - layer.element) / 2


def refuse(n: int) -> None:
    if n < 1:
        raise BadInput(f"block size is {n}; expected at least 1 output kernel per block")
