"""All runs of a folder on one page: accuracy against latency, speedup against sparsity, sensitivities. Times nothing.

Only runs on the same data, processor, threads and batch share a figure: top-1 of different images do not compare, nor
do milliseconds of different machines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kerf import files
from kerf.deploy.report import claims, page, reading, tradeoff
from kerf.deploy.report.schema import Report
from kerf.deploy.report.tradeoff import Point
from kerf.errors import BadInput


@dataclass(frozen=True)
class Run:
    """What a folder of imagenet.py says, and the report of a bundle in it, if one was built."""

    name: str
    summary: dict[str, Any]
    report: Report | None

    @property
    def latency_ms(self) -> float | None:
        return self.report["latency_ms"]["kerf"]["median"] if self.report else None

    @property
    def sparsity(self) -> float:
        """Share of the multiply-accumulates that went, or have a zero weight."""
        return 1 - self.summary["macs"] / self.summary["macs_dense"]

    @property
    def point(self) -> Point:
        """Only of a run that was built."""
        built = self.built
        ratio, ms = built.get("speedup"), built["latency_ms"]["kerf"]["median"]
        style = "dense" if self.notes else "kerf"
        return Point(self.name, self.summary["top1"], ms, self.sparsity, ratio["median"] if ratio else None, style)

    @property
    def built(self) -> Report:
        """Raises BadInput where there is none."""
        if self.report is None:
            raise BadInput(f"{self.name}: no bundle was built of it")
        return self.report

    @property
    def numbers(self) -> str:
        """What the network computes with: of the bundle, or where none was built of the exported file."""
        integers = self.report.get("quantised") if self.report else self.summary.get("quantised")
        return claims.INT8 if integers else claims.F32

    @property
    def notes(self) -> list[str]:
        return claims.notes(self.report) if self.report else []

    @property
    def conditions(self) -> tuple[str, ...]:
        return conditions(self.summary, self.built)


@dataclass(frozen=True)
class Group:
    """Runs that compare, and their figures."""

    title: str
    runs: list[Run]
    accuracy: Markup | None
    speedup: Markup | None


def conditions(summary: Mapping[str, Any], report: Report) -> tuple[str, ...]:
    """What two runs must have in common for their top-1 and milliseconds to compare, as words."""
    said = [summary.get("data_set"), f"batch {report['batch']}"]
    said += [f"threads {report['threads']}", report["cpu"]]
    return tuple(str(word) for word in said if word is not None)


def runs(folder: Path) -> list[Run]:
    """Every finished run in or below `folder`, by name, once for each of its bundles. Raises ValueError."""
    return [run for path in sorted(folder.glob("**/summary.json")) for run in read(path, folder)]


def read(path: Path, folder: Path) -> list[Run]:
    """The run of a summary.json, and of each bundle beside it. Raises ValueError for what cannot be read."""
    name = str(path.parent.relative_to(folder))
    reports = sorted(path.parent.glob("*/report.json"))
    try:
        summary = reading.summary(path)
        built: dict[str, Report | None] = {report.parent.name: reading.report(report) for report in reports} or {
            "": None
        }
        return [Run(f"{name}/{key}" if len(built) > 1 else name, summary, value) for key, value in built.items()]
    except BadInput as error:
        raise BadInput(f"{path} or its report cannot be read ({error})") from error


def others(job: Path, summary: Mapping[str, Any], report: Report) -> list[dict[str, Any]]:
    """Fields of a Point for each built run in a folder beside `job` that compares with it, if it can be read."""
    points = []
    for path in sorted(job.resolve().parent.glob("*/summary.json")):
        if path.parent == job.resolve():
            continue
        try:
            found = [run for run in read(path, path.parents[1]) if run.report]
        except (ValueError, OSError):
            continue  # a neighbour's torn file is no reason to fail; kerf-deploy compare names it
        points += [run.point for run in found if run.conditions == conditions(summary, report)]
    return [{"name": p.name, "top1": p.top1, "ms": p.ms, "sparsity": p.sparsity, "speedup": p.speedup} for p in points]


def sensitivities(folder: Path) -> list[dict[str, Any]]:
    """{name, levels, rows, dense_top1, images} of every sensitivity file in or below `folder`. Raises ValueError.

    `rows`: (layer, [(top-1 in percent, share of the worst loss of top-1), …] by level), the most delicate layer first.
    """
    found = []
    for path in sorted(folder.glob("**/sensitivity*.json")):
        content = reading.sensitivity(path)
        dense, top1 = content["dense_top1"], content["top1"]
        worst = max([1.0, *(dense - value for row in top1.values() for value in row)])
        rows = [
            (layer.removesuffix(".weight"), [(v, min(1.0, max(0.0, (dense - v) / worst))) for v in row])
            for layer, row in sorted(top1.items(), key=lambda item: sum(item[1]))
        ]
        name = str(path.parent.relative_to(folder)) + path.stem.removeprefix("sensitivity").replace("-", ", N = ")
        levels = [float(level) for level in content["levels"]]
        found.append(
            {"name": name, "levels": levels, "rows": rows, "dense_top1": float(dense), "images": content["images"]}
        )
    return found


def groups(found: Sequence[Run]) -> list[Group]:
    """Built runs by their conditions, the largest group first."""
    alike: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in found:
        if run.report:
            alike[run.conditions].append(run)
    made = []
    for said, members in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0])):
        points = [run.point for run in members]
        made.append(Group(", ".join(said), members, tradeoff.accuracy(points), tradeoff.speedup(points)))
    return made


def write(folder: Path) -> Path:
    """Writes `folder`/compare.html. Raises ValueError, or FileNotFoundError if there is nothing in it to compare."""
    found, delicate = runs(folder), sensitivities(folder)
    if not found and not delicate:
        raise FileNotFoundError(f"{folder}: no finished runs (summary.json) in it; prune something with imagenet.py")
    return files.write(folder / "compare.html", render(found, folder.resolve().name, delicate))


def render(found: Sequence[Run], title: str, delicate: Sequence[dict[str, Any]] = ()) -> str:
    """The page as text."""
    made = groups(found)
    return page.neutral(
        page.environment()
        .get_template("compare.html.j2")
        .render(
            title=title,
            runs=sorted(found, key=lambda run: -run.summary["top1"]),
            groups=made,
            front=unbeaten(found),
            work=claims.work,
            sensitivities=delicate,
        )
    )


def unbeaten(found: Sequence[Run]) -> set[str]:
    """Names of the runs that no other under their conditions beats in both accuracy and latency."""
    return {name for group in groups(found) for name in tradeoff.unbeaten([run.point for run in group.runs])}
