"""What scripts/gpu/gpu_bench.py measured -> deploy/pretuned/ARCH.jsonl, for kerf-tune where no GPU is at hand.

Launch:    python scripts/maintain/gpu_pretune.py RESULTS.json [--arch sm_90]
Hardware:  any.
Expected:  a line for every layer, batch and density: the fastest of kerf's kernels, dense ones included.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tvm.target import Target

from kerf import files
from kerf.deploy.compiler import pretuned
from kerf.deploy.compiler.choice import Choice
from kerf.kernels.cuda.host.problems import weights
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem


def lines(results: dict, target: Target, n: int) -> list[str]:
    """Of pretuned's file."""
    own = [row for row in results["layers"] if row["kernel"].startswith("conv2d")]
    densities = sorted({row["density"] for row in own if "_bsr_" in row["kernel"]})
    found = []
    for key in dict.fromkeys((row["group"], row["precision"]) for row in own):
        rows = [row for row in own if (row["group"], row["precision"]) == key]
        shape = replace(Problem.from_json(key[0]), **types_of(key[1]), activation="none")
        for density in densities:
            takers = [row for row in rows if row["density"] == density or "_bsr_" not in row["kernel"]]
            if not any("_bsr_" in row["kernel"] for row in takers):
                continue
            best = min(takers, key=lambda row: row["us"])
            p, _, _ = weights(replace(shape, n=n), density)
            problem = p if "_bsr_" in best["kernel"] else replace(p, n=0, nnzb=0)
            found.append(pretuned.line(p, Choice(problem, best["kernel"], best["config"]), target))
        dense = [row for row in rows if "_bsr_" not in row["kernel"]]
        if dense:
            best = min(dense, key=lambda row: row["us"])
            found.append(pretuned.line(shape, Choice(shape, best["kernel"], best["config"]), target))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--block", type=int, default=32)
    args = parser.parse_args()
    target = Target({"kind": "cuda", "arch": args.arch}, host={"kind": "llvm"})
    path = pretuned.file_of(target)
    found = lines(json.loads(args.results.read_text()), target, args.block)
    files.write(path, "\n".join(found) + "\n")
    print(f"{path}: {len(found)} lines")
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_pretune", main))
