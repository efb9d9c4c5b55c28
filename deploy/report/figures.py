"""Figures of the report as inline SVG: no scripts, no files, no fixed width.

Widths are percentages, so bars follow the page from a phone to a wide screen while text keeps its size. Lines live in a
nested 100 x 100 viewport that stretches. Colours are the page's CSS classes, which know light, dark and print.
"""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from markupsafe import Markup

from kerf.deploy.report import labels
from kerf.deploy.report.schema import Latency

FULL = 96.0  # percent of the width that the largest bar takes
GUTTER = 10.0  # percent of the width left of a line chart, for the numbers of its y axis
LINES = 180  # height of a line chart, pixels


def ticks(high: float, low: float = 0.0, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def latency(engines: Sequence[tuple[str, str, Latency]]) -> Markup:
    """One bar per (label, css class, {median, p10, p90, samples} in ms): median, p10-p90 whisker, a tick per round."""
    highest = max(m["p90"] for _, _, m in engines)
    scale, bottom = FULL / highest, 58 * len(engines)
    parts = []
    for value in ticks(highest):
        x = f"{value * scale:.2f}%"
        anchor = "start" if value == 0 else "middle"
        parts.append(f'<text x="{x}" y="{bottom + 14}" class="soft {anchor}">{value:g}</text>')
        parts += [f'<line x1="{x}" x2="{x}" y1="{y + 20}" y2="{y + 48}" class="grid"/>' for y in range(0, bottom, 58)]
    for i, (label, style, m) in enumerate(engines):
        y = 58 * i
        x10, x50, x90 = (f"{value * scale:.2f}%" for value in (m["p10"], m["median"], m["p90"]))
        parts.append(
            f'<text x="0" y="{y + 14}" class="strong">{Markup.escape(label)}</text>'
            f'<text x="100%" y="{y + 14}" class="end"><tspan class="strong">{number(m["median"])} ms</tspan>'
            f'<tspan class="soft"> {number(m["p10"])}–{number(m["p90"])}</tspan></text>'
            f'<rect x="0" y="{y + 22}" width="{x50}" height="16" rx="2" class="{style}"/>'
            f'<line x1="{x10}" x2="{x90}" y1="{y + 30}" y2="{y + 30}" class="whisker"/>'
            f'<line x1="{x10}" x2="{x10}" y1="{y + 25}" y2="{y + 35}" class="whisker"/>'
            f'<line x1="{x90}" x2="{x90}" y1="{y + 25}" y2="{y + 35}" class="whisker"/>'
        )
        samples = m.get("samples")
        shown = sorted(samples)[:: max(1, len(samples) // 150)] if isinstance(samples, Sequence) else ()
        parts += [
            f'<line x1="{s * scale:.2f}%" x2="{s * scale:.2f}%" y1="{y + 41}" y2="{y + 46}" class="rug"/>'
            for s in shown
            if s * scale <= 100
        ]
    return svg(parts, bottom + 20, "Latency per engine in milliseconds: median, 10th to 90th percentile, every round")


def layer(kerf: float, dense: float | None, highest: float, style: str) -> Markup:
    """Thin bars on a common scale, microseconds: the kernel in use, in `style`, over the best dense one if given."""
    parts = [f'<rect x="0" y="0" width="{100 * kerf / highest:.2f}%" height="7" rx="1.5" class="{style}"/>']
    if dense is not None:
        parts.append(f'<rect x="0" y="9" width="{100 * dense / highest:.2f}%" height="5" rx="1.5" class="dense"/>')
    return svg(parts, 14, f"kerf {number(kerf)} µs" + (f", dense {number(dense)} µs" if dense is not None else ""))


def lines(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    title: str,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """A line per (css class, x, y), both axes as wide as the data; a dot where a series is one point; labelled x."""
    x0, x1 = span([x for _, xs, _ in series for x in xs])
    y0, y1 = span([y for _, _, ys in series for y in ys])

    def across(value: float) -> float:
        return GUTTER + (100 - GUTTER) * (value - x0) / (x1 - x0)

    top = 18 if marks else 0  # a row for their labels, where no line runs
    parts = []
    for value in ticks(y1, y0, 4):
        y = top + LINES * (1 - (value - y0) / (y1 - y0))
        parts.append(f'<line x1="{GUTTER}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{GUTTER - 2}%" y="{max(y + 4, 10):.1f}" class="soft end">{value:g}</text>')
    for value in (t for t in ticks(x1, x0, 6) if t == int(t)):
        x = across(value)
        anchor = "end" if x > 95 else "middle"
        parts.append(f'<text x="{x:.2f}%" y="{top + LINES + 16}" class="soft {anchor}">{value:g}</text>')
    free = 0.0  # percent from which there is room for a label, on the narrowest page
    for value, label in marks:
        x, wide = across(value), 100 * labels.width(label) / labels.NARROW + 2
        parts.append(f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="2" y2="{top + LINES}" class="mark"/>')
        start = x if x + wide <= 100 else x - wide
        if start >= free:
            place = 'dx="4"' if start == x else 'dx="-4" text-anchor="end"'
            parts.append(f'<text x="{x:.2f}%" {place} y="11" class="soft">{Markup.escape(label)}</text>')
            free = start + wide
    parts.append(f'<svg x="{GUTTER}%" y="{top}" width="{100 - GUTTER}%" height="{LINES}" viewBox="0 0 100 100" ')
    parts.append('preserveAspectRatio="none" overflow="visible">')
    dots = []
    for style, sx, sy in series:
        points = [f"{100 * (a - x0) / (x1 - x0):.2f},{100 * (1 - (b - y0) / (y1 - y0)):.2f}" for a, b in zip(sx, sy)]
        if len(points) == 1:  # browsers draw no line of no length
            y = top + LINES * (1 - (sy[0] - y0) / (y1 - y0))
            dots.append(f'<circle cx="{across(sx[0]):.2f}%" cy="{y:.1f}" r="4" class="{style}"/>')
        parts.append(f'<polyline points="{" ".join(points)}" class="line {style}" vector-effect="non-scaling-stroke"/>')
    return svg([*parts, "</svg>", *dots], top + LINES + 22, title)


def scatter(
    points: Sequence[tuple[float, float, str, str]], title: str, joined: Sequence[tuple[float, float]] = ()
) -> Markup:
    """A dot per (x, y, label, css class), the first the most important, and a line through the points `joined`.

    A label stands beside its dot where there is room for it on the narrowest page, and in the dot's tooltip always.
    """
    x0, x1 = padded([x for x, *_ in points])
    y0, y1 = padded([y for _, y, *_ in points])
    height = 1.5 * LINES

    def across(value: float) -> float:
        return GUTTER + (100 - GUTTER) * (value - x0) / (x1 - x0)

    def down(value: float) -> float:
        return height * (1 - (value - y0) / (y1 - y0))

    parts = []
    for value in ticks(y1, y0, 4):
        parts.append(f'<line x1="{GUTTER}%" x2="100%" y1="{down(value):.1f}" y2="{down(value):.1f}" class="grid"/>')
        parts.append(f'<text x="{GUTTER - 2}%" y="{max(down(value) + 4, 10):.1f}" class="soft end">{value:g}</text>')
    for value in ticks(x1, x0, 5):
        x = across(value)
        anchor = "end" if x > 95 else "middle"
        parts.append(f'<text x="{x:.2f}%" y="{height + 16}" class="soft {anchor}">{value:g}</text>')
    for (xa, ya), (xb, yb) in pairwise(joined):
        ends = f'x1="{across(xa):.2f}%" y1="{down(ya):.1f}" x2="{across(xb):.2f}%" y2="{down(yb):.1f}"'
        parts.append(f'<line {ends} class="mark"/>')
    dots = [(across(x), down(y)) for x, y, _, _ in points]
    for (left, top), (_, _, label, style) in reversed(list(zip(dots, points))):  # the first on top
        name = f"<title>{Markup.escape(label)}</title>"
        parts.append(f'<circle cx="{left:.2f}%" cy="{top:.1f}" r="5.5" class="{style}">{name}</circle>')
    placed = labels.place(dots, [label for _, _, label, _ in points], GUTTER, height)
    for (left, _), spot in zip(dots, placed):
        if spot:
            text, dx, y, anchor = spot
            parts.append(
                f'<text x="{left:.2f}%" dx="{dx}" y="{y:.1f}" class="soft name {anchor}">{Markup.escape(text)}</text>'
            )
    return svg(parts, int(height) + 22, title)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest with room around them."""
    low, high = span(values)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def blocks(rows: Sequence[str], title: str) -> Markup:
    """One cell per block, filled where it is kept ("1"): block rows downwards, input channels to the right.

    A row is one stroke with gaps, which is a third of the bytes of as many rectangles.
    """
    width, height = max(len(row) for row in rows), len(rows)
    path = []
    for y, row in enumerate(rows):
        x, pen = 0, None  # of the cell, and where the stroke ended
        for cell, run in groupby(row):
            length = len(list(run))
            if cell == "1":
                path.append(f"M{x} {y}.5h{length}" if pen is None else f"m{x - pen} 0h{length}")
                pen = x + length
            x += length
    frame = f"aspect-ratio:{width}/{height};max-width:{min(640, 10 * width)}px"
    return Markup(
        f'<svg role="img" aria-label="{Markup.escape(title)}" viewBox="0 0 {width} {height}" class="blocks" '
        f'preserveAspectRatio="none" shape-rendering="crispEdges" style="{frame}">'
        f'<rect width="{width}" height="{height}" class="hole"/><path d="{"".join(path)}" class="cells"/></svg>'
    )


def alone(picture: str) -> str:
    """`blocks` as a file of its own, in the light page's colours."""
    style = "<style>svg{width:100%;max-width:1280px !important}.hole{fill:#eceeef}.cells{stroke:#0f766e}</style>"
    opened = str(picture).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return opened.replace("><", f">{style}<", 1) + "\n"


def span(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest, apart from each other even if all values are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def number(value: float) -> str:
    """Three significant digits, or all of the integer part: 0.0123, 4.02, 41.5, 1234."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:.{digits}f}"


def svg(parts: Sequence[str], height: int, title: str) -> Markup:
    label = Markup.escape(title)
    return Markup(f'<svg role="img" aria-label="{label}" width="100%" height="{height}">{"".join(parts)}</svg>')
