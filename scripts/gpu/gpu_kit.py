"""Compiles the GPU kernels to check and time into libraries that need TVM's runtime and the CUDA driver alone.

Launch:    python scripts/gpu/gpu_kit.py FOLDER [--arch sm_90] [--batches 64 8 1] [--configs 4]
Hardware:  no GPU; half a second a kernel and core.
Expected:  FOLDER/kernels_*.so and .cubin, FOLDER/index.jsonl: what scripts/gpu/gpu_bench.py reads, here or elsewhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import _checkout  # noqa: F401 - before kerf
from tvm.target import Target

from kerf import files
from kerf.deploy.runtime import gpu
from kerf.kernels.cuda import KERNELS, compiler, conv2d_chwn_bsr_mma
from kerf.kernels.cuda.host.cases import Item, checks
from kerf.kernels.cuda.host.problems import resnet50, weights
from kerf.kernels.kernel import candidates
from kerf.kernels.precision import types_of
from kerf.kernels.problem import Problem

AT_ONCE = 24  # kernels of a library


def timed(target: Target, args: argparse.Namespace) -> Iterator[Item]:
    """ResNet-50's convolutions with bias and relu. A kernel takes any number of blocks up to the largest density's."""
    for batch in args.batches:
        for precision in args.precisions:
            layers: dict[Problem, int] = {}
            for shape, count in resnet50(batch, args.block, precision):
                shape = replace(shape, activation="relu", residual=False)
                layers[shape] = layers.get(shape, 0) + count
            for shape, count in layers.items():
                p, _, _ = weights(shape, max(args.densities))
                group = replace(p, n=0, nnzb=0, **types_of("f32")).to_json()
                for taker in candidates(KERNELS, p, target):
                    if taker.kernel.name.endswith("_simt"):
                        continue
                    densities = args.densities if taker.problem.n else [1.0]
                    most = args.configs if taker.kernel is conv2d_chwn_bsr_mma else -(-args.configs // 2)
                    for c in apart(taker.kernel.configs(taker.problem, target), most):
                        item = Item("time", group, taker.kernel.name, taker.problem.to_json(), dict(c), 0.0, count)
                        yield replace(item, densities=tuple(densities))


def apart(configs: Sequence[dict], most: int) -> list[dict]:
    """The first of those that differ in more than how they are pipelined."""
    first: dict[tuple, dict] = {}
    for c in configs:
        first.setdefault(tuple((k, v) for k, v in c.items() if k not in ("chunk", "stages", "channels")), c)
    return list(first.values())[:most]


def build(job: tuple[int, list[Item], str, Path]) -> list[dict]:
    """A library of several kernels."""
    number, items, arch, folder = job
    target = Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})
    by_name = {kernel.name: kernel for kernel in KERNELS}
    named = [replace(item, function=f"k{i}", library=f"kernels_{number:03d}") for i, item in enumerate(items)]
    funcs = {
        item.function: by_name[item.kernel].prim_func(Problem.from_json(item.problem), item.config, target)
        for item in named
    }
    built, source, code = compiler.compile_funcs(funcs, target)
    path = folder / f"kernels_{number:03d}"
    built.export_library(str(path.with_suffix(".so")))
    files.write(path.with_suffix(".cubin"), code)
    files.write(path.with_suffix(".key"), gpu.key(source))
    return [asdict(item) for item in named]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="sm_90", choices=compiler.ARCHITECTURES)
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 8, 1])
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--precisions", nargs="+", default=["f16", "tf32"])
    parser.add_argument("--configs", type=int, default=4, help="of conv2d_chwn_bsr_mma, half as many of the others")
    parser.add_argument("--no_checks", action="store_true")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    target = Target({"kind": "cuda", "arch": args.arch}, host={"kind": "llvm"})
    items = [] if args.no_checks else list(checks(target))
    items += timed(target, args)
    jobs = [(n, items[i : i + AT_ONCE], args.arch, args.folder) for n, i in enumerate(range(0, len(items), AT_ONCE))]
    print(f"{len(items)} kernels in {len(jobs)} libraries", flush=True)
    lines = []
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for done in pool.imap(build, jobs):
            for item in done:
                lines += [json.dumps({**item, "density": d}) for d in item["densities"] or [item["density"]]]
            files.write(args.folder / "index.jsonl", "\n".join(lines) + "\n")
            print(f"  {len(lines)} cases", flush=True)
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_kit", main))
