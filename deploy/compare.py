"""All runs of a folder on one page: accuracy against latency, speedup against sparsity. Times nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import atomic, figures, report


@dataclass(frozen=True)
class Run:
    """What a folder of imagenet.py says, and the report of the bundle beside it, if it was built."""

    name: str
    summary: dict
    report: dict | None

    @property
    def latency_ms(self) -> float | None:
        return self.report["latency_ms"]["kerf"]["median"] if self.report else None

    @property
    def sparsity(self) -> float:
        """Share of the multiply-accumulates that went."""
        return 1 - self.summary["macs"] / self.summary["macs_dense"]


def runs(folder: Path) -> list[Run]:
    """Every finished run in or below `folder`, by name. Raises FileNotFoundError if there is none."""
    found = []
    for path in sorted(folder.glob("**/summary.json")):
        reports = sorted(path.parent.glob("*/report.json"), key=lambda p: p.stat().st_mtime)
        try:
            summary = json.loads(path.read_text())
            built = json.loads(reports[-1].read_text()) if reports else None
            run = Run(str(path.parent.relative_to(folder)) or ".", summary, built)
            _ = run.latency_ms, run.sparsity, summary["top1"], summary["method"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} or its report cannot be read ({error}); run it again") from error
        found.append(run)
    if not found:
        raise FileNotFoundError(f"{folder}: no finished runs (summary.json) in it; prune something with imagenet.py")
    return found


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(latency, accuracy) of those that no other beats in both, from fast to accurate (Pareto front)."""
    best, kept = float("-inf"), []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if y > best:
            kept.append((x, y))
            best = y
    return kept


def write(folder: Path) -> Path:
    """Writes `folder`/compare.html. Raises as `runs`."""
    found = runs(folder)
    return atomic.write(folder / "compare.html", render(found, folder.resolve().name))


def render(found: Sequence[Run], title: str) -> str:
    """The page as text."""
    built = [run for run in found if run.report]
    points = [(run.latency_ms, run.summary["top1"], run.name, "kerf") for run in built]
    curve = front([point[:2] for point in points])
    raced = [run for run in built if run.report.get("speedup")]
    speedups = [(100 * run.sparsity, run.report["speedup"]["median"], run.name, "kerf") for run in raced]
    return (
        report.environment()
        .get_template("compare.html.j2")
        .render(
            title=title,
            runs=sorted(found, key=lambda run: -run.summary["top1"]),
            front={run.name for run in built if (run.latency_ms, run.summary["top1"]) in curve},
            accuracy=figures.scatter(points, "Top-1 in percent against milliseconds", curve) if points else None,
            speedup=figures.scatter(
                speedups, "Times as fast as the fastest dense engine against percent of MACs removed"
            )
            if speedups
            else None,
            machines=sorted({run.report["cpu"] for run in built}),
        )
    )
