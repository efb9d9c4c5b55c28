"""libkerf, alone and as operators of ONNX Runtime, beside Python's session: latency, resident memory, size.

Launch:    python scripts/bench/c_runtime.py NETWORK.onnx [NETWORK.onnx ...]
Hardware:  any that bundles run on, with a C compiler; half a minute a network.
Expected:  as fast as Python's session, whose functions it calls without the virtual machine; a fraction of the memory.

Latencies are medians of interleaved rounds of one process, one thread; the ratio is the median of the rounds' ratios
with its 95 % interval. Memory is the most that a C program of its own was resident with, which runs the network five
times; "ONNX Runtime" is the same program with a bundle that hands it the whole network, by its C API.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import numpy as np
from _libkerf import Session

import kerf
from kerf.deploy.embed import c_library, ort_model
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure import bench
from kerf.deploy.measure.environment import environment
from kerf.deploy.partition.plain import plain
from kerf.deploy.plans import steps
from kerf.deploy.runtime import bundle
from kerf.deploy.runtime.own_piece import aligned

HEAD = """\
| network | Python ms (p10–p90) | libkerf ms | Python / libkerf | 95 % interval | as operators ms | Python / operators \
| 95 % interval | libkerf MiB | ONNX Runtime MiB |
|-|-|-|-|-|-|-|-|-|-|"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path, metavar="NETWORK.onnx")
    parser.add_argument("--seconds", type=float, default=10, help="of each race")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = c_library.export(Path(folder) / "runtime")
        print(f"{made.library.name}: {made.bytes / 1024:.0f} KiB\n\n{HEAD}", flush=True)
        for path in args.networks:
            print(line(path, made, Path(folder), args.seconds), flush=True)
    where = environment()
    load, cores = where["machine"]["load_average"], where["machine"]["cores"]
    print(f"\n{where['cpu']}, {cores} cores, load {load}, {where['date']}")
    return 0


def line(path: Path, made: c_library.Exported, folder: Path, seconds: float) -> str:
    out = folder / f"{path.parent.name}-{path.stem}.kerf"
    compiled = kerf.compile(path, out, trials=0, seconds=0.1, against=(), engine="kerf", format="ort")
    python = compiled.session()
    x = aligned(np.random.default_rng(0).standard_normal(python.input_shape).astype(np.float32))
    ((name, _),) = python.inputs.items()
    copies = [shutil.copytree(out, folder / f"{out.stem}-{i}.kerf") for i in range(2)]  # TVM's own keeps its runtime
    c = Session(made.library, copies[0], 1)
    operators = ort_model.opened(copies[1])
    engines = [
        bench.Engine("python", python.run),
        bench.Engine("libkerf", c.run),
        bench.Engine("operators", lambda x: operators.run(None, {name: x})[0]),
    ]
    if not all(np.array_equal(python.run(x), engine.run(x)) for engine in engines):
        raise SystemExit(f"{path}: libkerf computes something else than Python's session")
    slow, fast, inside = bench.interleave(engines, x, seconds=seconds)
    np.save(folder / "x.npy", x)
    dense = folder / f"{out.stem}-dense.kerf"
    whole_in_onnxruntime(path, out, dense)
    resident = [megabytes(made.folder, name, folder / "x.npy") for name in (out, dense)]
    ratios = " | ".join(f"{ms.median:.3f} | {ratio(slow, ms)}" for ms in (fast, inside))
    return (
        f"| {path.parent.name}/{path.stem} | {slow.median:.3f} ({slow.p10:.3f}–{slow.p90:.3f}) | {ratios} "
        f"| {resident[0]:.1f} | {resident[1]:.1f} |"
    )


def ratio(slow: bench.Measurement, fast: bench.Measurement) -> str:
    found = bench.speedup(fast, [slow])
    return f"{found['median']:.3f} | {found['ci95'][0]:.3f}–{found['ci95'][1]:.3f}"


def whole_in_onnxruntime(path: Path, like: Path, out: Path) -> None:
    """A bundle as ``like``, whose only step is ONNX Runtime's."""
    made = steps.steps(plain(convert(path), "onnxruntime"), None)
    contents = {k: v for k, v in bundle.read_manifest(like).items() if k not in ("format", "weights", "sha256")}
    out.mkdir()
    bundle.write(out, {**contents, "plans": made.entries}, {}, made.weights, made.models, "", programs=[()])  # type: ignore[typeddict-item]


def megabytes(runtime: Path, folder: Path, x: Path) -> float:
    """That the example program was resident with at most."""
    (library,) = glob(f"{Path(sys.modules['onnxruntime'].__file__ or '').parent}/capi/libonnxruntime.so.*")
    command = [runtime / "bin" / c_library.EXAMPLE, folder, x, "--runs", "5"]
    env = {**os.environ, "KERF_ONNXRUNTIME": library}
    done = subprocess.run([sys.executable, "-S", "-c", RESIDENT, *command], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr}")
    return int(done.stdout) / 1024


# between this process and the program, since Linux counts to a program what the one that started it was resident with
RESIDENT = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


if __name__ == "__main__":
    raise SystemExit(main())
