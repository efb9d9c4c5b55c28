"""What report.json holds. Keys may be added; where one goes or changes its meaning, SCHEMA grows."""

from __future__ import annotations

from typing import Any, TypedDict

from kerf.deploy.report.block_pattern import Pattern

SCHEMA = 1


class Latency(TypedDict):
    """Milliseconds per call of an engine; ``samples``: one per round of the race, or how many there were."""

    median: float
    p10: float
    p90: float
    samples: list[float] | int


class Speedup(TypedDict):
    """Over the fastest dense engine: the median of the ratios within rounds and its interval."""

    against: str
    median: float
    ci95: list[float]
    conclusive: bool


class Bytes(TypedDict):
    """The network's weights before, and what has to be shipped."""

    dense: int
    bundle: int


class LayerReport(TypedDict, total=False):
    """A layer: what computes it, what its weights hold, and its times where they were measured.

    "n", "block", "density" and "macs" are those of the kernel that runs: a layer with zero blocks that a dense kernel
    computes has no block and density 1. "zeros" and "zero_blocks" are what its weights hold.
    """

    name: str
    op: str
    shape: str
    numbers: str  # "int8", "f32", of a GPU "f16" or "tf32"; older reports lack it
    n: int | None
    block: str | None  # n as "4x1"
    density: float
    weights: int
    zeros: float
    zero_blocks: float | None
    macs: int
    macs_dense: int
    kernel: str
    together_with: str | None
    config: dict[str, Any]
    kerf_us: float | None
    dense_us: float | None
    peak_share: float | None


class QuantisedReport(TypedDict, total=False):
    """Of a network that computes on integers of 8 bits."""

    difference: float | None  # from the f32 network, of the largest output, on a random input; None where not known
    calibration: str  # where it was quantised for this bundle: the samples' folder or file,
    samples: int  # how many were used,
    method: str  # and how ranges were taken of them


class PieceReport(TypedDict):
    """Nodes that one engine runs in one call. ``us``: microseconds of the fastest of a few, None where not measured."""

    engine: str
    layers: int  # kerf's
    operators: dict[str, int]  # how many of each, the most frequent first
    us: float | None


class Everywhere(TypedDict):
    """The keys that every report has (REQUIRED)."""

    model: str
    target: str
    cpu: str
    threads: int
    batch: int
    verified: bool  # a report of a network that differs from ONNX Runtime on the original file is never written
    max_abs_error: float
    latency_ms: dict[str, Latency]  # by engine, "kerf" among them; of a quantised network "onnxruntime int8", too
    bytes: Bytes
    layers: list[LayerReport]


class Report(Everywhere, total=False):
    """And those that it may have: older reports lack some."""

    engine: str  # "kerf", or the dense engine that the bundle runs since it is faster than kerf's pieces
    pieces: list[PieceReport]  # in order of execution
    schema: int  # SCHEMA of the version that wrote it
    max_relative_error: float
    bsr: list[int]  # N that zero blocks were looked for with
    speedup: Speedup | None  # None if no dense engine was raced
    quantised: QuantisedReport | None  # None of a network of floats
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commands: list[str]
    block_patterns: list[Pattern]
    accuracy: dict[str, Any]  # summary.json of the run of imagenet.py that made the network
    training: list[dict[str, Any]]  # rows of its metrics.jsonl
    runs: list[dict[str, Any]]  # of kerf.deploy.report.compare.others


REQUIRED = tuple(Everywhere.__annotations__)
