"""At which density sparse kernels overtake the dense one, per shape and N: a table.

Launch:    python scripts/bench/break_even.py [--N 1 2 4 8 16 32] [--out runs/break_even.json]
Hardware:  any that the kernels run on; 3 minutes on one core.
Expected:  N = 4 and wider break even at a density of 0.8 or more; figures in docs/benchmarks/.

kerf's own kernels on their default configurations. Time is measured at three densities, interleaved with the dense
kernel, and a line laid through them: t(d) = a + b d; the break-even density is where it meets the dense kernel's time.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import tvm

from kerf.deploy.compiler import targets
from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR, spread
from kerf.kernels.cpu.layout import out_planes, to_planes
from kerf.kernels.kernel import pick
from kerf.kernels.lowering import compile_func
from kerf.kernels.problem import Problem

SHAPES = [(64, 56, 64, 1), (96, 56, 24, 1), (24, 56, 144, 1), (32, 28, 192, 1), (384, 14, 96, 1), (512, 14, 512, 1)]
SHAPES += [(160, 7, 960, 1), (960, 7, 320, 1), (64, 56, 64, 3), (128, 28, 128, 3), (256, 14, 256, 3), (512, 7, 512, 3)]
DENSITIES = (0.3, 0.6, 0.9)
ROUNDS = 9


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--N", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    p.add_argument("--out", type=Path, default=Path("runs/break_even.json"))
    a = p.parse_args()
    print(f"| layer | dense kernel µs | {' | '.join(f'N = {n}' for n in a.N)} |\n|{'-|' * (len(a.N) + 2)}", flush=True)
    rows = []
    for channels, side, out, kernel in SHAPES:
        dense = Problem(1, channels, side, side, out, (kernel, kernel), (1, 1), (kernel // 2,) * 4, activation="relu")
        runs = {"dense": timer(dense, 1.0)}
        runs |= {(n, d): timer(replace(dense, n=n), d) for n in a.N for d in DENSITIES}
        samples = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, run in runs.items():
                samples[key].append(run())
        us = {key: float(np.median(values)) for key, values in samples.items()}
        at = {}
        for n in a.N:
            slope, base = np.polyfit(DENSITIES, [us[n, d] for d in DENSITIES], 1)
            at[n] = float((us["dense"] - base) / slope)
        cells = [f"{min(max(at[n], 0), 1):.2f}" + ("+" if at[n] > 1 else "") for n in a.N]
        print(f"| {dense.describe()} | {us['dense']:.1f} | {' | '.join(cells)} |", flush=True)
        times = {f"N={n} density={d}": us[n, d] for n in a.N for d in DENSITIES}
        rows.append({"layer": dense.describe(), "dense_us": us["dense"], "us": times, "break_even": at})
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(rows, indent=1))
    return 0


def timer(p: Problem, density: float):
    """A function that measures the layer once, in microseconds."""
    rng, target = np.random.default_rng(0), targets.parse("native", 1)
    weights = rng.standard_normal(p.weight_shape).astype(np.float32)
    if p.n:
        kept = rng.random((-(-p.out_channels // p.n), p.in_channels)) < density
        weights = BSR.from_conv(spread(kept, weights, p.n), p.n)
        p = replace(p, nnzb=weights.nnzb)
    kernel = pick(CPU.kernels, p, target)
    c = kernel.configs(p, target)[0]
    image = to_planes(rng.standard_normal(p.in_shape).astype(np.float32))
    arrays = [image, *kernel.pack(p, weights, c).values(), np.zeros(p.out_channels, np.float32)]
    arguments = [tvm.runtime.tensor(array) for array in (*arrays, np.zeros(out_planes(p), np.float32))]
    module = compile_func(kernel.prim_func(p, c, target), target)
    evaluate = module.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=2)
    return lambda: 1e6 * evaluate(*arguments).results[0]


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("break_even", main))
