"""What a bundle's manifest.json holds. Keys may be added; where one goes or changes its meaning, FORMAT grows."""

from __future__ import annotations

from typing import Any, TypedDict

FORMAT = 2


class Needs(TypedDict, total=False):
    """What code asks of a machine: LLVM's name of its architecture, names in /proc/cpuinfo, a GPU's architecture."""

    machine: str
    features: list[str]
    cuda: str


class LayerKernel(TypedDict):
    """What computes a layer."""

    name: str
    shape: str
    n: int | None  # output kernels of a block; None where a dense kernel runs
    block: str | None  # the same as "4x1"
    density: float  # share of the weights that the kernel computes
    kernel: str
    config: dict[str, Any]
    together_with: str | None  # the layer that one function computes with this one


class Contents(TypedDict):
    """What whoever builds a bundle says of it."""

    model: str
    model_sha256: str
    input: list[int]
    target: str
    needs: Needs
    threads: int
    tvm: str
    versions: dict[str, str]
    layers: list[LayerKernel]


class GpuContents(Contents, total=False):
    """Of a GPU's bundle besides: of its products, and of the source that its library.so holds."""

    precision: str | None
    cuda_source: str


class Manifest(GpuContents):
    """The whole file."""

    format: int
    weights: list[str]
    sha256: dict[str, str]
    manifest_sha256: str
