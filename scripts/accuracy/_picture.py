"""Accuracy of many methods against what they cost, as one SVG. Not a script itself."""

from collections.abc import Sequence

from kerf.deploy.report.figures import padded

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, one for each unit
WIDTH, HEIGHT = 1000, 460  # of a panel
LEFT, TOP = 60, 60
DEPTH = 15.0  # points of top-1 below the best that are drawn to scale; what is lower stands on the edge, with its value


def picture(rows: Sequence[dict], rate: float) -> str:
    """Panels of top-1 against MACs and, where networks were raced, against milliseconds; a colour for each unit."""
    units = sorted({row["unit"] for row in rows})
    colours = dict(zip(units, COLOURS * (1 + len(units) // len(COLOURS)))) | {"–": "#222"}
    panels = [panel([(row["macs"], row) for row in rows], "MACs, share of the untouched network's", colours, 0)]
    timed = [(row["ms"], row) for row in rows if row["ms"]]
    if timed:
        panels.append(panel(timed, "milliseconds an image, kerf, one thread", colours, HEIGHT + 100))
    legend = "".join(
        f'<circle cx="{LEFT + 8 + 140 * i}" cy="40" r="5" fill="{colours[u]}"/>'
        f'<text x="{LEFT + 20 + 140 * i}" y="44">{u}</text>'
        for i, u in enumerate(units)
    )
    title = f"Top-1 after pruning {rate:.0%} of each method's unit"
    height = len(panels) * (HEIGHT + 100) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 40} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH + 40}" height="{height}" fill="#fff"/><g fill="#222">'
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">{title}</text>{legend}{"".join(panels)}</g></svg>\n'
    )


def panel(points: Sequence[tuple[float, dict]], axis: str, colours: dict[str, str], above: float) -> str:
    lowest = max(row["top1"] for _, row in points) - DEPTH
    (x0, x1), (y0, y1) = padded([x for x, _ in points]), padded([max(lowest, row["top1"]) for _, row in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 110) * (x - x0) / (x1 - x0)
        return across, above + TOP + HEIGHT * (1 - (y - y0) / (y1 - y0))

    parts = [f'<rect x="{LEFT}" y="{above + TOP}" width="{WIDTH - LEFT}" height="{HEIGHT}" fill="none" stroke="#bbb"/>']
    for i in range(6):
        x, y = x0 + i * (x1 - x0) / 5, y0 + i * (y1 - y0) / 5
        parts.append(f'<text x="{at(x, 0)[0]:.0f}" y="{above + TOP + HEIGHT + 16}" text-anchor="middle">{x:.2f}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{at(x0, y)[1] + 4:.0f}" text-anchor="end">{y:.1f}</text>')
    parts.append(f'<text x="{LEFT}" y="{above + TOP + HEIGHT + 34}">{axis} (across), top-1 in percent (up)</text>')
    lines, dots, labels = [], [], []
    taken: list[tuple[float, float, float]] = []  # of each label: left, right, baseline
    for x, row in sorted(points, key=lambda p: (-p[1]["top1"], p[0])):
        (px, py), colour = at(x, max(lowest, row["top1"])), colours[row["unit"]]
        name = row["method"] if row["top1"] >= lowest else f"{row['method']} {row['top1']:.1f}"
        left, base = _free(px, py + 4, 6.6 * len(name), above + TOP, taken)
        taken.append((left, left + 6.6 * len(name), base))
        near = left if left > px else left + 6.6 * len(name)
        lines.append(f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{near:.1f}" y2="{base - 4:.1f}" stroke="#ccc"/>')
        dots.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
        labels.append(f'<text x="{left:.1f}" y="{base:.1f}">{name}</text>')
    return "".join(parts + lines + dots + labels)


def _free(px: float, wanted: float, width: float, top: float, taken: list[tuple[float, float, float]]) -> tuple:
    """(left, baseline) of a label inside the panel beside x = px, on whichever side is free the nearest."""
    for away in sorted((step * 12 for step in range(-40, 41)), key=abs):
        base = wanted + away
        for left in (px + 10, px - 10 - width):
            inside = top + 12 <= base <= top + HEIGHT - 4 and left > LEFT and left + width < WIDTH + 40
            if inside and not any(left < r and left + width > l and abs(base - b) < 12 for l, r, b in taken):
                return left, base
    return px + 10, wanted
