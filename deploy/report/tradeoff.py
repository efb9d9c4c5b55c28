"""Runs against each other: accuracy over latency with the Pareto front, speedup over sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kerf.deploy.report import figures

APART = 0.01  # shares of the multiply-accumulates that are told apart


@dataclass(frozen=True)
class Point:
    """`top1`: percent; `ms`: per call; `sparsity`: share of the MACs that went; `style`: a CSS class."""

    name: str
    top1: float
    ms: float
    sparsity: float | None = None
    speedup: float | None = None
    style: str = "kerf"


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(latency, accuracy) of those that no other beats in both, from fast to accurate (Pareto front)."""
    best, kept = float("-inf"), []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if y > best:
            kept.append((x, y))
            best = y
    return kept


def unbeaten(points: Sequence[Point]) -> set[str]:
    """Names of the points on the front."""
    curve = front([(p.ms, p.top1) for p in points])
    return {p.name for p in points if (p.ms, p.top1) in curve}


def accuracy(points: Sequence[Point]) -> Markup | None:
    """Top-1 over milliseconds. None without points."""
    if not points:
        return None
    best = unbeaten(points)
    ordered = sorted(points, key=lambda p: p.name not in best)  # names of the front first, where there is little room
    drawn = [(p.ms, p.top1, p.name, p.style) for p in ordered]
    return figures.scatter(drawn, "Top-1 in percent against milliseconds", front([(p.ms, p.top1) for p in points]))


def speedup(points: Sequence[Point]) -> Markup | None:
    """Speedup over percent of multiply-accumulates gone. None unless at least two points differ in that."""
    drawn = [
        (100 * p.sparsity, p.speedup, p.name, p.style)
        for p in points
        if p.speedup is not None and p.sparsity is not None
    ]
    removed = [percent for percent, *_ in drawn]
    if not drawn or max(removed) - min(removed) < 100 * APART:
        return None
    return figures.scatter(drawn, "Times as fast as the fastest dense engine against percent of MACs removed")
