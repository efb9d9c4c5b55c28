"""Reports, summaries and sensitivities that other runs left, held to what pages make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

from msgspec import Meta

from kerf import gate
from kerf.deploy.report.schema import SCHEMA, Report
from kerf.errors import BadInput

Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Count = Annotated[int, Meta(ge=0, le=10**18)]
Positive = Annotated[float, Meta(gt=0, le=1e15)]
EXPECTED = "what a run writes there; run it again"


class _Summary(TypedDict):
    method: str
    top1: Number
    macs: Count
    macs_dense: Annotated[int, Meta(ge=1, le=10**18)]


class _SummaryMore(_Summary, total=False):
    data_set: str | None
    top1_dense: Number | None
    quantised: Any


class _Latency(TypedDict):
    median: Positive
    p10: Positive
    p90: Positive


class _Speedup(TypedDict):
    against: str
    median: Positive
    ci95: tuple[Number, Number]


class _Quantised(TypedDict, total=False):
    difference: Number | None
    samples: Count
    method: str
    calibration: str


class _Piece(TypedDict):
    engine: str
    layers: Count
    operators: dict[str, Count]
    us: Number | None


class _Layer(TypedDict):
    name: str


class _LayerMore(_Layer, total=False):
    numbers: str
    block: str | list[int] | None  # a list in older reports
    weights: Count | None
    zeros: Number
    zero_blocks: Number | None
    macs: Count


class _Report(TypedDict):
    cpu: str
    threads: Count
    batch: Annotated[int, Meta(ge=1)]
    latency_ms: dict[str, _Latency]
    layers: list[_LayerMore]


class _ReportMore(_Report, total=False):
    schema: int
    engine: str
    bsr: int | list[int]
    speedup: _Speedup | None
    quantised: _Quantised | None
    pieces: list[_Piece]


class _Sensitivity(TypedDict):
    dense_top1: Number
    top1: dict[str, list[Number]]
    levels: list[Number]
    images: Count


def report(path: Path) -> Report:
    """Raises BadInput, which names the file, for what is none, or of a newer schema."""
    value = _read(path, _ReportMore)
    if value.get("schema", 0) > SCHEMA:
        raise BadInput(f"{path}: schema {value['schema']}, this kerf knows up to {SCHEMA}; {EXPECTED}")
    if "kerf" not in value["latency_ms"]:
        raise BadInput(f"{path}: no latency of kerf; expected {EXPECTED}")
    for layer in value["layers"]:
        if layer.get("zero_blocks") is not None and layer.get("weights") and not {"zeros", "block"} <= set(layer):
            raise BadInput(f"{path}: a layer with zero blocks and without zeros and block; expected {EXPECTED}")
    return cast(Report, value)


def summary(path: Path) -> dict[str, Any]:
    return _read(path, _SummaryMore)


def sensitivity(path: Path) -> dict[str, Any]:
    return _read(path, _Sensitivity)


def _read(path: Path, form: Any) -> dict[str, Any]:
    """The whole value, of which the form is checked: keys may be added at any time."""
    value = gate.read_json(path, dict[str, Any], EXPECTED)
    gate.converted(value, form, str(path), EXPECTED)
    return value
