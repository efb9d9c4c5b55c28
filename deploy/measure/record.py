"""Record: one measured configuration. RecordBook: a file of them that outlives crashes and is shared by tuners.

The file is JSON lines, only ever appended to, under a lock, each line in one write with a checksum of itself. A process
killed while writing leaves at most one torn line, which every reader skips with a warning.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import uuid
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kerf import gate
from kerf.errors import BadInput
from kerf.kernels.config import Config

Key = tuple[str, str, tuple[tuple[str, str], ...]]  # problem, target, versions
What = tuple[str, tuple[tuple[str, Any], ...]]  # kernel and configuration, hashable


@dataclass(frozen=True)
class Record:
    """``problem``: Problem.to_json(); ``latency_us``: a sample per round, none when it failed for ``error``.

    ``cold_us``: the same with flushed caches, if it was measured. ``race``: records of one race were measured in the
    same rounds, interleaved, so their samples pair up.
    """

    problem: str
    kernel: str
    config: Config
    target: str
    latency_us: tuple[float, ...]
    versions: dict[str, str]
    error: str = ""
    race: str = ""
    cold_us: tuple[float, ...] = ()

    @property
    def samples(self) -> np.ndarray:
        return samples(self.latency_us, self.cold_us)

    @property
    def us(self) -> float:
        return float(np.median(self.samples)) if self.latency_us else math.inf

    @property
    def what(self) -> What:
        return self.kernel, tuple(sorted(self.config.items()))

    @property
    def key(self) -> Key:
        return key(self.problem, self.target, self.versions)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def to_line(self) -> str:
        body = self.to_json()
        return f'{{"crc32": "{zlib.crc32(body.encode()):08x}", {body[1:]}'

    @classmethod
    def from_line(cls, line: str | bytes) -> Record:
        """Raises BadInput if the line is none of ``to_line``, whole and unchanged, or holds what was never measured."""
        fields = gate.parsed(line, dict[str, Any], "not a record", "a line of kerf-tune export-records")
        gate.converted(fields, _Line, "not a record", "a line of kerf-tune export-records")
        checksum = fields.pop("crc32")
        record = cls(**{**fields, **{name: tuple(fields[name]) for name in ("latency_us", "cold_us")}})
        if checksum != f"{zlib.crc32(record.to_json().encode('utf-8', 'surrogatepass')):08x}":
            raise BadInput("its checksum is another's")
        for times in (record.latency_us, record.cold_us):
            if not all(0 < us < math.inf for us in times) or len(times) not in (0, len(record.latency_us)):
                raise BadInput("its times are no positive numbers, or not as many of both kinds")
        if not all(isinstance(value, int | str) for value in record.config.values()):
            raise BadInput("its configuration holds other things than numbers and words")
        return record


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """Of the file: as a record, with its checksum; ``config`` of any version's keys."""

    crc32: str
    problem: str
    kernel: str
    config: dict[str, Any]
    target: str
    latency_us: tuple[float, ...]
    versions: dict[str, str]
    error: str
    race: str
    cold_us: tuple[float, ...]


def key(problem: str, target: str, versions: dict[str, str]) -> Key:
    return problem, target, tuple(sorted(versions.items()))


def race_name() -> str:
    """For Record.race: no other race, on any machine, has it."""
    return uuid.uuid4().hex[:12]


def samples(latency_us: Sequence[float], cold_us: Sequence[float] = ()) -> np.ndarray:
    """Microseconds by which measurements are compared: in a network a layer finds its image in the caches, but not its
    weights, so it is halfway between a call after another and one after a flush, where that was measured.
    """
    return np.mean([latency_us, cold_us or latency_us], axis=0)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """At least 95 % confidence for the median, from order statistics; (-inf, inf) for fewer than six samples."""
    ordered, n = np.sort(samples), len(samples)
    below, tail = 0, 0.5**n  # tail: chance that at most `below` samples are under the median
    if tail > 0.025:
        return -math.inf, math.inf
    while tail + math.comb(n, below + 1) * 0.5**n <= 0.025:
        below += 1
        tail += math.comb(n, below) * 0.5**n
    return float(ordered[below]), float(ordered[n - 1 - below])


def faster(a: Record, b: Record) -> bool:
    """Whether a is faster than b beyond noise: by the ratios within rounds if they raced, else by their own medians."""
    if a.race and a.race == b.race:
        return interval(a.samples / b.samples)[1] < 1
    return interval(a.samples)[1] < interval(b.samples)[0]


class RecordBook:
    """Records of one file, or of memory without a path. Several processes may read and extend the file at once."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.records: list[Record] = []
        self._by_key: dict[Key, list[Record]] = defaultdict(list)
        self._best: dict[Key, Record] = {}
        self._read = 0  # bytes
        self.refresh()

    def refresh(self) -> None:
        """Take in what others appended since. Lines that are no records are skipped with one warning."""
        if self.path is None or not (self.path.exists() or self.path.is_symlink()):
            return
        gate.refuse_special(self.path, "a file of records")
        with self.path.open("rb") as file, _locked(file, fcntl.LOCK_SH):
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        bad = 0
        for line in text.split(b"\n"):
            if line.strip():
                try:
                    self._keep(Record.from_line(line))
                except ValueError:
                    bad += 1
        if bad:
            warnings.warn(f"{self.path}: {bad} lines are no records (torn or changed), skipped", stacklevel=3)

    def add(self, *records: Record) -> None:
        """Append, all or nothing. Raises OSError, also where a disk that becomes full takes a part only."""
        if self.path is None:
            for record in records:
                self._keep(record)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(record.to_line() + "\n" for record in records)
        with self.path.open("ab+") as file, _locked(file, fcntl.LOCK_EX):
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                text = text if file.read(1) == b"\n" else "\n" + text  # a torn line before stays alone
            content = text.encode()
            if os.write(file.fileno(), content) < len(content):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.refresh()

    def of(self, problem: str, target: str, versions: dict[str, str]) -> list[Record]:
        """All records of a problem on this target by these versions, as they came; failures among them."""
        return self._by_key.get(key(problem, target, versions), [])

    def best(self, problem: str, target: str, versions: dict[str, str]) -> Record | None:
        """The one that no later measurement beat beyond noise."""
        return self._best.get(key(problem, target, versions))

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        self._by_key[record.key].append(record)
        if record.latency_us:
            best = self._best.get(record.key)
            # a new measurement of the same takes the place of the old: what raced with it is compared with it
            if best is None or record.what == best.what or faster(record, best):
                self._best[record.key] = record


@contextmanager
def _locked(file, how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
