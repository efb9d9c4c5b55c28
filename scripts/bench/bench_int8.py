"""Networks on 8-bit integers with 1xN blocks at several sparsities, against the dense engines in f32 and in int8.

Launch:    python scripts/bench/bench_int8.py [--archs ...] [--sparsities 0 0.5 0.75 0.9] [--N 4] [--threads 1] ...
Hardware:  any x86-64 with AVX2; 2 cores, about 3 minutes a network. Quiet machines give narrow intervals.
Expected:  verified, and faster than the fastest of ONNX Runtime and OpenVINO, whichever numbers these compute with;
           figures in docs/benchmarks/.

Weights are random (kerf.zoo), and quantised with random images: speed depends on shapes and zero blocks. Networks,
bundles and results.json stay under --folder.
"""

import argparse
from pathlib import Path

import _sweep
import numpy as np
import onnx

from kerf import zoo
from kerf.deploy.measure import bench
from kerf.deploy.measure.verify import relative_error
from kerf.deploy.runtime import session

ARCHS = ("resnet50", "mobilenet_v2", "mobilenet_v1", "mobilenet_v3_large")
DENSE = {"onnxruntime": bench.onnxruntime_engine, "openvino": bench.openvino_engine}
ENGINES = ("kerf int8", "kerf f32", "onnxruntime f32", "openvino f32", "onnxruntime int8", "openvino int8")
HEAD = f"""\
| network | zero | {" | ".join(ENGINES)} | fastest dense / kerf int8 | 95 % interval | weights, of dense f32 |
|{"-|" * (len(ENGINES) + 5)}"""


def main() -> int:
    a = _sweep.flags(__doc__, "runs/bench_int8", ARCHS, (0.0, 0.5, 0.75, 0.9), seconds=15)
    _sweep.rows(a, HEAD, measure, line)
    return 0


def measure(arch: str, sparsity: float, a: argparse.Namespace) -> dict:
    """Export, quantise, build and verify both, race."""
    _, model = zoo.network(arch, a.N, sparsity, a.folder, a.batch)
    integers = zoo.integers(model, a.batch)
    engines, weights = [], 0
    for name, path in (("int8", integers), ("f32", model)):
        out = path.with_suffix(f".t{a.threads}.kerf")
        zoo.build(path, out, max(sparsity, 0.01), a.N, a.threads, a.trials)
        engines.append(bench.Engine(f"kerf {name}", session.load(out, a.threads).run))
        weights = weights or (out / "weights.npz").stat().st_size  # of the first, on integers
    for kind, path in (("f32", model), ("int8", integers)):
        for name, make in DENSE.items():
            engines.append(bench.Engine(f"{name} {kind}", make(path, a.threads).run))
    x = zoo.images(a.batch)[: a.batch]
    truth = engines[2].run(x)
    errors = {engine.name: relative_error(np.array(engine.run(x)), truth) for engine in engines}
    measured = bench.interleave(engines, x, seconds=a.seconds)
    dense = sum(np.prod(i.dims) * 4 for i in stored(model))
    return {
        "ms": {m.engine: {"median": m.median, "p10": m.p10, "p90": m.p90} for m in measured},
        "speedup": bench.speedup(measured[0], measured[2:]),
        "difference_from_f32": errors,
        "weights": weights / dense,
    }


def stored(model: Path) -> list:
    return list(onnx.load(model, load_external_data=False).graph.initializer)


def line(r: dict) -> str:
    ms = [f"{r['ms'][name]['median']:.2f}" for name in ENGINES]
    low, high = r["speedup"]["ci95"]
    ratio = f"{r['speedup']['median']:.2f} ({r['speedup']['against']})"
    cells = [r["arch"], f"{r['sparsity']:.0%}", *ms, ratio, f"{low:.2f}–{high:.2f}", f"{r['weights']:.3f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("bench_int8", main))
