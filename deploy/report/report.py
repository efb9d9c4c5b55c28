"""A finished race as report.json and one self-contained report.html. Times nothing, decides nothing but the wording."""

import io
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from kerf import files
from kerf.deploy.report import claims, figures, page, tradeoff
from kerf.deploy.report.block_pattern import Pattern
from kerf.deploy.report.claims import ENGINES, label, verdict
from kerf.deploy.report.figures import number
from kerf.deploy.report.schema import REQUIRED, Latency, LayerReport, Report
from kerf.deploy.report.tradeoff import Point
from kerf.errors import BadInput

CEILING = 1.5
CURVES = {
    "top-1, %": {"train": "top1", "validation": "val_top1"},
    "loss": {"train": "loss", "validation": "val_loss"},
}


def write(report: Report, folder: str | Path) -> Path:
    """Writes `folder`/report.json (`report` as it is) and `folder`/report.html; returns the path of the page.

    Times are ms (engines) and µs (layers), densities and peak shares are in [0, 1], accuracies are percent.
    Raises BadInput if the network was not verified or a key is missing; then nothing is written.
    """
    check(report)
    folder = Path(folder)
    text = render(report)
    content = json.dumps(report, indent=2, allow_nan=False) + "\n"
    files.write(folder / "report.json", content)
    return files.write(folder / "report.html", text)


def check(report: Report) -> None:
    missing = [key for key in REQUIRED if key not in report]
    if missing:
        raise BadInput(f"the report lacks {', '.join(missing)}; expected {', '.join(REQUIRED)}")
    if report["verified"] is not True:
        raise BadInput(
            f"{report['model']} was not verified (max |error| {report['max_abs_error']}); "
            "latencies of a network that may compute something else are not reported"
        )


def render(report: Report) -> str:
    """The page as text."""
    points = beside(report)
    patterns: list[dict[str, Any]] = [{**p, "figure": block_picture(p)} for p in report.get("block_patterns") or []]
    return page.neutral(
        page.environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=verdict(report),
            notes=claims.notes(report),
            work=claims.work(report),
            dense=fastest_dense(report),
            label=lambda engine: label(engine, report),
            style=style,
            latency=figures.latency(ordered_engines(report)),
            rounds=rounds(report),
            accuracy_figure=tradeoff.accuracy(points) if len(points) > 1 else None,
            before=any(point.style == "dense" for point in points),
            others=len(report.get("runs") or []),
            speedup=tradeoff.speedup(points),
            layer_speedup=layer_speedup(report["layers"]),
            layers=layer_bars(report["layers"]),
            kernels=by_kernel(report["layers"]),
            curves=training_curves(report.get("training") or []),
            patterns=patterns,
            small=[max(len(p["rows"]) for p in patterns[1:]), max(len(p["rows"][0]) for p in patterns[1:])]
            if patterns[1:]
            else None,
        )
    )


def fastest_dense(report: Report) -> str | None:
    """The engine the ratio is against: the faster of the dense ones."""
    ratio = report.get("speedup")
    return ratio["against"] if ratio else None


def ordered_engines(report: Report) -> list[tuple[str, str, Latency]]:
    """(label, css class, measurement): kerf first, then the others from fast to slow."""
    items = sorted(report["latency_ms"].items(), key=lambda item: (item[0] != "kerf", item[1]["median"]))
    return [(label(name, report), style(name), m) for name, m in items]


def style(engine: str) -> str:
    """CSS classes: the engine's, and of its numbers."""
    return engine if engine.partition(" ")[0] in ENGINES else "dense"


def rounds(report: Report) -> Markup | None:
    """Samples in the order of the race, if they were kept: drift and neighbours show here and in no percentile.

    Outliers end at CEILING times the slowest p90, or a single one would flatten all lines.
    """
    series, ceiling = [], CEILING * max(m["p90"] for m in report["latency_ms"].values())
    for name, m in report["latency_ms"].items():
        samples = m.get("samples")
        if not isinstance(samples, list) or len(samples) < 2:
            return None
        stride = max(1, len(samples) // 400)
        series.append((style(name), range(1, len(samples) + 1)[::stride], [min(s, ceiling) for s in samples[::stride]]))
    return figures.lines(series, "Milliseconds per call in each round of the race")


def beside(report: Report) -> list[Point]:
    """This run, the dense network before it and the runs beside it; empty if nothing is known of its accuracy.

    The dense network took what the dense engine takes for its zeros, if pruning has left the layers' sizes alone.
    """
    found, kerf = report.get("accuracy") or {}, report["latency_ms"].get("kerf")
    if found.get("top1") is None or not kerf:
        return []
    sparsity = 1 - found["macs"] / found["macs_dense"] if found.get("macs") and found.get("macs_dense") else None
    ratio = report.get("speedup")
    points = [Point("this run", found["top1"], kerf["median"], sparsity, ratio["median"] if ratio else None)]
    if ratio and found.get("top1_dense") is not None and not found.get("widths"):
        before = report["latency_ms"][ratio["against"]]["median"]
        points.append(Point("before pruning", found["top1_dense"], before, style="dense"))
    return points + [Point(**run, style="beside") for run in report.get("runs") or []]


def layer_speedup(layers: list[LayerReport]) -> Markup | None:
    """Dense time over sparse time against the share of skipped blocks, a dot per layer that was timed both ways."""
    points = [
        (100 * (1 - row["density"]), dense / own, row["name"], "kerf")
        for row in layers
        if row["block"] and (own := row.get("kerf_us")) and (dense := row.get("dense_us"))
    ]
    skipped = [percent for percent, *_ in points]
    if not points or max(skipped) - min(skipped) < 100 * tradeoff.APART:
        return None
    return figures.scatter(points, "Dense time over sparse time of layers against percent of blocks skipped")


def layer_bars(layers: list[LayerReport]) -> list[tuple[LayerReport, Markup | None]]:
    """(layer, its bars on a scale common to all); no bars where the layer was not timed on its own."""
    times = [t for row in layers for t in (row.get("kerf_us"), row.get("dense_us")) if t]
    highest = max(times, default=1.0)
    return [(row, bars(row, highest)) for row in layers]


def bars(row: LayerReport, highest: float) -> Markup | None:
    """Two for a layer that runs sparse; one of another colour for a dense kernel, which has nothing to compare with."""
    if not (us := row.get("kerf_us")):
        return None
    if row["block"]:
        return figures.layer(us, row.get("dense_us"), highest, "kerf")
    return figures.layer(us, None, highest, "plain")


def by_kernel(layers: list[LayerReport]) -> list[dict[str, Any]]:
    """Per kernel, most expensive first: its layers, how many were timed, and of those the sums."""
    found: dict[str, dict[str, Any]] = {}
    for row in layers:
        none = {"kernel": row["kernel"], "layers": 0, "timed": 0, "kerf_us": 0.0, "dense_us": 0.0}
        entry = found.setdefault(row["kernel"], none)
        entry["layers"] += 1
        if us := row.get("kerf_us"):
            entry["timed"] += 1
            entry["kerf_us"] += us
            entry["dense_us"] += row.get("dense_us") or us
    return sorted(found.values(), key=lambda entry: -entry["kerf_us"])


def training_curves(rows: list[dict[str, Any]]) -> list[tuple[str, list[str], Markup]]:
    """(title, names of its lines, figure) for what the rows of metrics.jsonl hold, over epochs from first to last."""
    phases = [row.get("phase") for row in rows]
    marks = [(i + 1, str(new)) for i, (old, new) in enumerate(zip([None, *phases], phases)) if new != old]
    curves = []
    for title, keys in CURVES.items():
        series: dict[str, dict[int, float]] = {}
        for name, key in keys.items():
            known = {i + 1: row[key] for i, row in enumerate(rows) if isinstance(row.get(key), (int, float))}
            if known:
                series[name] = known
        if series:
            drawn = [(name, list(known), list(known.values())) for name, known in series.items()]
            curves.append((title, list(series), figures.lines(drawn, f"{title} per epoch", marks)))
    return curves


def block_picture(pattern: Pattern) -> Markup:
    return figures.blocks(pattern["rows"], f"Kept blocks of {pattern['layer']}")


def table(report: Report, width: int = 100) -> str:
    """The verdict and the engines as plain text for a terminal."""
    check(report)
    rows = Table()
    rows.add_column("engine")
    for column in ("median ms", "p10", "p90", "rounds"):
        rows.add_column(column, justify="right")
    for engine, _, m in ordered_engines(report):
        samples = m["samples"] if isinstance(m["samples"], int) else len(m["samples"])
        rows.add_row(engine, number(m["median"]), number(m["p10"]), number(m["p90"]), str(samples))
    text = io.StringIO()
    console = Console(file=text, width=width, no_color=True, highlight=False)
    console.print(f"{report['model']}, batch {report['batch']}, {threads(report)}, {report['cpu']}")
    console.print(rows)
    console.print("{}: {}".format(*verdict(report)))
    for note in claims.notes(report):
        console.print(note, markup=False)
    return text.getvalue()


def threads(report: Report) -> str:
    return f"{report['threads']} thread{'' if report['threads'] == 1 else 's'}"
