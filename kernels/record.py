"""Record: one measured configuration; RecordBook: a file of them, one JSON object a line, appended as they come."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.kernel import Config


@dataclass(frozen=True)
class Record:
    """``problem``: Problem.to_json(); ``latency_us``: repeated measurements, empty when it failed for ``error``."""

    problem: str
    kernel: str
    config: Config
    target: str
    latency_us: tuple[float, ...]
    versions: dict[str, str]
    error: str = ""

    @property
    def us(self) -> float:
        """The shortest repeat: what else runs on a shared machine only ever adds time."""
        return min(self.latency_us, default=float("inf"))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


class RecordBook:
    """Records of one file (or of memory, without a path). A torn last line is dropped with a warning."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.records: list[Record] = []
        if path is not None and path.exists():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                try:
                    fields = json.loads(line)
                    self.records.append(Record(**{**fields, "latency_us": tuple(fields["latency_us"])}))
                except (ValueError, TypeError, KeyError):
                    warnings.warn(f"{path}:{number}: not a record, skipped", stacklevel=2)

    def add(self, record: Record) -> None:
        self.records.append(record)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a") as file:
                file.write(("\n" if torn else "") + record.to_json() + "\n")

    def of(self, problem: str, target: str, versions: dict[str, str]) -> list[Record]:
        """Records of a problem on this target by these versions, fastest first; failures are last."""
        found = [r for r in self.records if (r.problem, r.target, r.versions) == (problem, target, versions)]
        return sorted(found, key=lambda r: r.us)

    def best(self, problem: str, target: str, versions: dict[str, str]) -> Record | None:
        found = [r for r in self.of(problem, target, versions) if r.latency_us]
        return found[0] if found else None
