"""What the cost of tensor-core tiles says of ResNet-50's convolutions, and how it compares with what was measured.

Launch:    python scripts/gpu/gpu_cost.py [RESULTS.json]      (RESULTS: what scripts/gpu/gpu_bench.py --out wrote)
Hardware:  no GPU.
Expected:  microseconds of the sparse and the dense kernel's first configuration, layer by layer and summed; with
           RESULTS, cost / measured over all tiles, and how much slower than a layer's best measured tile its measured
           tile with the least cost is.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from tvm.target import Target

from kerf.kernels.cuda import compiler, conv2d_chwn_bsr_mma, conv2d_chwn_dense_mma
from kerf.kernels.cuda.emit import tile_sizes
from kerf.kernels.cuda.host.problems import resnet50, weights
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem

KERNELS = {kernel.name: kernel for kernel in (conv2d_chwn_bsr_mma, conv2d_chwn_dense_mma)}


def expected(p: Problem, target: Target) -> tuple[dict, float]:
    """(first configuration, its cost in microseconds)"""
    kernel = conv2d_chwn_bsr_mma if p.n else conv2d_chwn_dense_mma
    c = kernel.configs(p, target)[0]
    return c, tile_sizes.cost(p, target, c, p.n or c["rows"])


def table(batch: int, n: int, density: float, target: Target) -> None:
    total = np.zeros(2)
    print(f"batch {batch}, N = {n}, {density:.0%} of the blocks kept: us sparse, us dense")
    for shape, count in resnet50(batch, n):
        p, _, _ = weights(shape, density)
        (c, sparse), (_, dense) = expected(p, target), expected(replace(p, n=0, nnzb=0), target)
        total += np.array([sparse, dense]) * count
        size = f"{p.in_channels}x{p.height}x{p.width}->{p.out_channels} {p.kernel[0]}x{p.kernel[1]}/{p.stride[0]}"
        print(f"  {size:26} x{count} {sparse:7.1f} {dense:7.1f}  {list(c.values())}")
    print(f"  together {total[0] / 1e3:.3f} ms, {total[1] / 1e3:.3f} ms")


def compare(results: Path, n: int, target: Target) -> None:
    """Cost against measured microseconds."""
    ratios, choices = defaultdict(list), defaultdict(list)
    for row in json.loads(results.read_text())["layers"]:
        if row["kernel"] not in KERNELS:
            continue
        p = replace(Problem.from_json(row["group"]), **types_of(row["precision"]))
        if row["kernel"] == conv2d_chwn_bsr_mma.name:
            p, _, _ = weights(replace(p, n=n), row["density"])
        c = {"slices": 1, **row["config"]}
        cost = tile_sizes.cost(p, target, c, p.n or c["rows"])
        ratios[row["batch"], p.precision].append(cost / row["us"])
        choices[row["batch"], p.precision, row["layer"], row["density"], row["kernel"]].append((cost, row["us"]))
    for key, found in ratios.items():
        lost = [
            min(v, key=lambda pair: pair[0])[1] / min(us for _, us in v)
            for k, v in choices.items()
            if k[:2] == key and len(v) > 1
        ]
        quantiles = " ".join(f"{q:.2f}" for q in np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95]))
        first = f"; likeliest / best of the measured {np.mean(lost):.3f}, {max(lost):.2f} at most" if lost else ""
        print(f"batch {key[0]} {key[1]}, {len(found)} tiles: cost / measured {quantiles}{first}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--arch", default="sm_90", choices=compiler.ARCHITECTURES)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 8, 1])
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--density", type=float, default=0.25)
    args = parser.parse_args()
    if args.results and not args.results.is_file():
        parser.error(f"{args.results}: no such file; expected what scripts/gpu/gpu_bench.py --out wrote")
    target = Target({"kind": "cuda", "arch": args.arch}, host={"kind": "llvm"})
    for batch in args.batches:
        table(batch, args.block, args.density, target)
    if args.results:
        compare(args.results, args.block, target)
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_cost", main))
