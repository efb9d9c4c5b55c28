"""Networks at 224x224 with 1xN blocks at several sparsities against the dense engines: a table and a picture.

Launch:    make bench         (or: python scripts/bench/bench_networks.py [--archs ...] [--sparsities ...] [--N 4] ...)
Hardware:  any x86-64 with AVX2; 2 cores, about 10 minutes. Quiet machines give narrow intervals.
Expected:  verified, and faster than the faster of ONNX Runtime and OpenVINO; figures in docs/benchmarks/.

Weights are random (kerf.zoo). Results stay under --folder (networks are not exported
twice); speedup.svg and results.json are written there.
"""

import argparse

import _sweep
import numpy as np

from kerf import zoo
from kerf.deploy.compiler import targets
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure import bench, peers
from kerf.deploy.runtime import session
from kerf.kernels.cpu.fma_peak import macs_per_us

ARCHS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "resnet50")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
HEAD = """\
| network | sparsity | kerf ms (p10–p90) | ONNX Runtime | OpenVINO | oneDNN | faster of the first two / kerf \
| 95 % interval | GFLOP/s | of peak | weights, of dense |
|-|-|-|-|-|-|-|-|-|-|-|"""


def main() -> int:
    a = _sweep.flags(__doc__, "runs/bench_networks", ARCHS, (0.5, 0.75, 0.9), seconds=10)
    rows = _sweep.rows(a, HEAD, measure, line)
    series = {arch: [(r["sparsity"], r["speedup"]["median"]) for r in rows if r["arch"] == arch] for arch in a.archs}
    (a.folder / "speedup.svg").write_text(picture(series, f"1x{a.N} blocks, {a.threads} thread(s), batch {a.batch}"))
    print(f"picture: {a.folder / 'speedup.svg'}")
    return 0


def measure(arch: str, sparsity: float, a: argparse.Namespace) -> dict:
    """Export, build, verify, race."""
    module, model = zoo.network(arch, a.N, sparsity, a.folder, a.batch)
    out = model.with_name(f"t{a.threads}-b{a.batch}.kerf")
    least = max(sparsity, 0.01)
    zoo.build(model, out, least, a.N, a.threads, a.trials)
    image = np.random.default_rng(0).standard_normal((a.batch, 3, zoo.SIZE, zoo.SIZE)).astype(np.float32)
    kerf = bench.Engine("kerf", session.load(out, a.threads).run)
    peak = a.threads * macs_per_us(targets.parse("native", 1))
    measured = bench.race([kerf, *peers.engines(model, module, image, a.threads)], image, seconds=a.seconds)
    converted = convert(model, a.N, least)
    macs = sum(layer.problem.macs for layer in converted.layers.values())
    weights = (out / "weights.npz").stat().st_size / converted.weights_bytes
    return {**peers.summary(measured, macs, peak), "weights": weights, "cells": peers.cells(measured)}


def line(r: dict) -> str:
    cells = [r["arch"], f"{r['sparsity']:.0%}", *r["cells"], peers.text(r["speedup"])]
    return f"| {' | '.join(cells)} | {r['gflops']:.0f} | {r['of_peak']:.0%} | {r['weights']:.2f} |"


def picture(series: dict[str, list[tuple[float, float]]], title: str) -> str:
    """SVG: speedup over the fastest dense engine against sparsity, a line per network, 1x as a dashed line."""
    xs = sorted({x for points in series.values() for x, _ in points})
    top = max(2.0, *(y for points in series.values() for _, y in points)) * 1.05
    low, high = xs[0] - 0.02, xs[-1] + 0.02

    def at(x: float, y: float) -> str:
        return f"{60 + 440 * (x - low) / (high - low):.1f},{320 - 280 * y / top:.1f}"

    def text(x: float, y: float, words: str, more: str = "") -> str:
        px, py = at(x, y).split(",")
        return f'<text x="{px}" y="{py}" {more}>{words}</text>'

    parts = [f'<text x="60" y="24" font-weight="bold">Speedup over the fastest dense engine, {title}</text>']
    for y in range(int(top) + 1):
        dash = 'stroke="#555" stroke-dasharray="4"' if y == 1 else 'stroke="#ddd"'
        parts += [f'<polyline points="{at(low, y)} {at(high, y)}" {dash}/>']
        parts += [text(low, y, f"{y}x", 'dx="-8" dy="4" text-anchor="end"')]
    parts += [text(x, 0, f"{x:.0%}", 'dy="18" text-anchor="middle"') for x in xs]
    ends = []
    for (name, points), colour in zip(series.items(), COLOURS):
        parts.append(f'<polyline points="{" ".join(at(*p) for p in points)}" stroke="{colour}" stroke-width="2"/>')
        for x, y in (at(*p).split(",") for p in points):
            parts.append(f'<circle r="3" cx="{x}" cy="{y}" fill="{colour}"/>')
        ends.append((points[-1], name, colour))
    lowest = float("inf")  # labels at the lines' ends, pushed down where two would overlap
    for (x, y), name, colour in sorted(ends, key=lambda e: -e[0][1]):
        lowest = min(y, lowest - 0.06 * top)
        parts.append(text(x, lowest, f"{name} {y:.1f}x", f'dx="18" dy="4" fill="{colour}"'))
    words, drawn = ("".join(t for t in parts if t.startswith("<text") == is_text) for is_text in (True, False))
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 350" font-family="sans-serif" font-size="13"'
    back = '<rect width="720" height="350" fill="#fff"/>'
    return f'{head} fill="none">{back}{drawn}<g fill="#222">{words}</g></svg>\n'


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("bench_networks", main))
