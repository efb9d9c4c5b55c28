"""A finished race as report.json and one self-contained report.html. Times nothing, decides nothing but the wording."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from deploy import atomic, figures
from deploy.figures import number

REQUIRED = ("model", "target", "cpu", "threads", "batch", "verified", "max_abs_error", "latency_ms", "bytes", "layers")
ENGINES = {"kerf": "kerf", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CEILING = 1.5
CURVES = {
    "top-1, %": {"train": "top1", "validation": "val_top1"},
    "loss": {"train": "loss", "validation": "val_loss"},
}


def write(report: dict, folder: str | Path) -> Path:
    """Writes `folder`/report.json (`report` as it is) and `folder`/report.html; returns the path of the page.

    `report` has the keys of REQUIRED and, if dense engines were raced, "speedup"; times are ms (engines) and µs
    (layers), densities and peak shares are in [0, 1], accuracies are percent. Optional: accuracy, commands, versions,
    machine, date, training (rows of metrics.jsonl), block_pattern (of deploy.inspect.pattern).
    Raises ValueError if the network was not verified or a key is missing; then nothing is written.
    """
    check(report)
    folder = Path(folder)
    page = render(report)
    content = json.dumps(report, indent=2, allow_nan=False) + "\n"
    atomic.write(folder / "report.json", content)
    return atomic.write(folder / "report.html", page)


def check(report: Mapping) -> None:
    missing = [key for key in REQUIRED if key not in report]
    if missing:
        raise ValueError(f"the report lacks {', '.join(missing)}; expected {', '.join(REQUIRED)}")
    if report["verified"] is not True:
        raise ValueError(
            f"{report['model']} was not verified (max |error| {report['max_abs_error']}); "
            "latencies of a network that may compute something else are not reported"
        )


def verdict(report: Mapping) -> tuple[str, str]:
    """(headline, evidence). A ratio whose interval contains 1.0 is not called a speedup."""
    ratio = report.get("speedup")
    if not ratio:
        return "Not compared", "no dense engine was raced"
    engine, (low, high) = ENGINES.get(ratio["against"], ratio["against"]), ratio["ci95"]
    interval = f"95 % interval {low:.2f}–{high:.2f}"
    if low <= 1.0 <= high:
        return f"No measurable difference from {engine}", f"{interval} of the ratio contains 1"
    if high < 1.0:
        return f"Slower than {engine}", f"{ratio['median']:.2f}× its speed, {interval}"
    return f"{ratio['median']:.2f}× faster than {engine}", interval


def render(report: dict) -> str:
    """The page as text."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=verdict(report),
            dense=fastest_dense(report),
            engines=ENGINES,
            latency=figures.latency(ordered_engines(report)),
            rounds=rounds(report),
            layers=layer_bars(report["layers"]),
            kernels=by_kernel(report["layers"]),
            curves=training_curves(report.get("training") or []),
            pattern=block_picture(report.get("block_pattern")),
        )
    )


def environment() -> Environment:
    """Templates of this folder, and how they print numbers."""
    made = Environment(
        loader=PackageLoader("deploy", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "size": size, "percent": percent, "shape": shape, "settings": settings}
    return made


def fastest_dense(report: Mapping) -> str | None:
    """The engine the ratio is against: the faster of the dense ones."""
    return (report.get("speedup") or {}).get("against")


def ordered_engines(report: Mapping) -> list[tuple[str, str, dict]]:
    """(label, css class, measurement): kerf first, then the others from fast to slow."""
    items = sorted(report["latency_ms"].items(), key=lambda item: (item[0] != "kerf", item[1]["median"]))
    return [(ENGINES.get(name, name), style(name), m) for name, m in items]


def style(engine: str) -> str:
    return engine if engine in ENGINES else "dense"


def rounds(report: Mapping) -> str | None:
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


def layer_bars(layers: list[dict]) -> list[tuple[dict, str | None]]:
    """(layer, its bars on a scale common to all); no bars where the layer was not timed on its own."""
    times = [t for row in layers for t in (row.get("kerf_us"), row.get("dense_us")) if t]
    highest = max(times, default=1.0)
    return [(row, bars(row, highest)) for row in layers]


def bars(row: Mapping, highest: float) -> str | None:
    return figures.layer(row["kerf_us"], row.get("dense_us"), highest) if row.get("kerf_us") else None


def by_kernel(layers: list[dict]) -> list[dict]:
    """Per kernel, most expensive first: its layers, their time, and their time with dense kernels instead."""
    found: dict[str, dict] = {}
    for row in layers:
        entry = found.setdefault(row["kernel"], {"kernel": row["kernel"], "layers": 0, "kerf_us": 0.0, "dense_us": 0.0})
        entry["layers"] += 1
        entry["kerf_us"] += row.get("kerf_us") or 0.0
        entry["dense_us"] += row.get("dense_us") or row.get("kerf_us") or 0.0
    return sorted(found.values(), key=lambda entry: -entry["kerf_us"])


def training_curves(rows: list[dict]) -> list[tuple[str, list[str], str]]:
    """(title, names of its lines, figure) for what the rows of metrics.jsonl hold, over epochs from first to last."""
    phases = [row.get("phase") for row in rows]
    marks = [(i + 1, str(new)) for i, (old, new) in enumerate(zip([None, *phases], phases)) if new != old]
    curves = []
    for title, keys in CURVES.items():
        series = {}
        for name, key in keys.items():
            points = [(i + 1, row[key]) for i, row in enumerate(rows) if isinstance(row.get(key), (int, float))]
            if points:
                series[name] = points
        if series:
            drawn = [(name, *zip(*points)) for name, points in series.items()]
            curves.append((title, list(series), figures.lines(drawn, f"{title} per epoch", marks)))
    return curves


def block_picture(pattern: Mapping | None) -> dict | None:
    if not pattern:
        return None
    kept = sum(row.count("1") for row in pattern["rows"]) / sum(len(row) for row in pattern["rows"])
    title = f"Kept blocks of {pattern['layer']}"
    return {**pattern, "kept": kept, "figure": figures.blocks(pattern["rows"], title)}


def size(count: float) -> str:
    """Bytes with a decimal prefix: 13.9 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{number(count)}\N{NO-BREAK SPACE}{unit}"
        count /= 1000
    return f"{number(count)}\N{NO-BREAK SPACE}GB"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def shape(value: object) -> str:
    """[64, 32, 3, 3] as 64×32×3×3; text as it is."""
    if value is None:
        return "–"
    return "×".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def settings(config: object) -> str:
    """{"tile": 6, "order": "ow"} as tile=6 order=ow; text as it is."""
    return " ".join(f"{k}={v}" for k, v in config.items()) if isinstance(config, Mapping) else str(config or "")


def table(report: Mapping, width: int = 100) -> str:
    """The verdict and the engines as plain text for a terminal."""
    check(report)
    rows = Table()
    rows.add_column("engine")
    for column in ("median ms", "p10", "p90", "rounds"):
        rows.add_column(column, justify="right")
    for label, _, m in ordered_engines(report):
        samples = m["samples"] if isinstance(m["samples"], int) else len(m["samples"])
        rows.add_row(label, *(number(m[key]) for key in ("median", "p10", "p90")), str(samples))
    text = io.StringIO()
    console = Console(file=text, width=width, no_color=True, highlight=False)
    console.print(f"{report['model']}, batch {report['batch']}, {threads(report)}, {report['cpu']}")
    console.print(rows)
    console.print("{}: {}".format(*verdict(report)))
    return text.getvalue()


def threads(report: Mapping) -> str:
    return f"{report['threads']} thread{'' if report['threads'] == 1 else 's'}"
