"""Bundles as operators of ONNX Runtime (--format ort) beside kerf's own session of the same bundle, on any networks.

Launch:    python scripts/bench/ort_format.py NETWORK.onnx [...] [--cpu_time] [--build_only]
Hardware:  any that bundles run on, with a C compiler; a minute a network, of which the race is a few seconds.
Expected:  the same outputs, at most 5 % slower than kerf's own session.

Networks have fixed sizes (scripts/bench/zoo.py leaves such files, half.onnx). Errors are the largest difference from
ONNX Runtime on the file itself, of its largest output, over three inputs; of a network that differs by more than
kerf.compile allows, or cannot be built so, the row says why. Bundles stay under --folder and are not built again.
"""

import argparse
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import kerf
from kerf.deploy.embed import ort_model
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure import bench
from kerf.deploy.measure.environment import environment
from kerf.deploy.measure.samples import alone, draw
from kerf.deploy.measure.verify import verify
from kerf.deploy.runtime.bundle import read_manifest
from kerf.deploy.runtime.manifest import is_own
from kerf.errors import KerfError

HEAD = """\
| network | kerf's pieces | error | session ms (p10–p90) | as operators ms | operators / session | 95 % interval |
|-|-|-|-|-|-|-|"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path, metavar="NETWORK.onnx")
    parser.add_argument("--folder", type=Path, default=Path("runs/ort_format"), help="where bundles are kept")
    parser.add_argument("--seconds", type=float, default=6, help="of each race")
    parser.add_argument("--cpu_time", action="store_true", help="race in seconds of CPU: on a busy machine")
    parser.add_argument("--build_only", action="store_true", help="leave the race to a later launch")
    args = parser.parse_args()
    print(HEAD, flush=True)
    for path in args.networks:
        name = f"{path.parent.name}/{path.stem}"
        out = args.folder / f"{path.parent.name}-{path.stem}.kerf"
        try:
            if not out.exists():
                made = out.with_suffix(".part")  # a bundle that is whole has its name
                shutil.rmtree(made, ignore_errors=True)
                made.parent.mkdir(parents=True, exist_ok=True)
                kerf.compile(path, made, trials=0, seconds=0.1, against=(), engine="kerf", format="ort")
                made.rename(out)
            if not args.build_only:
                print(line(name, path, out, args), flush=True)
        except KerfError as error:
            print(f"| {name} | {error} | | | | | |", flush=True)
    where = environment()
    print(f"\n{where['cpu']}, {where['machine']['cores']} cores, one thread, {where['date']}")
    return 0


def line(name: str, path: Path, out: Path, args: argparse.Namespace) -> str:
    session, inside = kerf.load(out), ort_model.opened(out)
    names = [o.name for o in inside.get_outputs()]
    inputs = convert(path).inputs

    def operators(x: Any) -> Any:
        found = inside.run(names, x if isinstance(x, Mapping) else {inputs[0].name: x})
        return found[0] if len(found) == 1 else dict(zip(names, found))

    error = verify(operators, path, inputs)["max_relative_error"]
    x = alone(draw(inputs, np.random.default_rng(0)))
    engines = [bench.Engine("session", session.run), bench.Engine("operators", operators)]
    clock = time.process_time if args.cpu_time else time.perf_counter
    own, other = bench.interleave(engines, x, seconds=args.seconds, clock=clock)
    found = bench.speedup(other, [own])  # how many times the operators' time is in the session's
    low, high = (1 / end for end in reversed(found["ci95"]))
    steps = read_manifest(out)["plans"][0]["steps"]
    return (
        f"| {name} | {sum(map(is_own, steps))} of {len(steps)} | {error:.1e} "
        f"| {own.median:.2f} ({own.p10:.2f}–{own.p90:.2f}) | {other.median:.2f} | {1 / found['median']:.3f} "
        f"| {low:.3f}–{high:.3f} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
