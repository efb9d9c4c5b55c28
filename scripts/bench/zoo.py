"""Networks of every kind, dense and with half of their 1xN blocks zero: built, verified, raced, one Markdown table.

Launch:    python scripts/bench/zoo.py [--networks NAME ...] [--again] [--N 4] [--seconds 6]
Hardware:  any x86-64 with AVX2, 8 GB; 2 cores, about an hour for all, 1 to 2 minutes each.
Expected:  every network verified; as fast as the faster of ONNX Runtime and OpenVINO while dense, faster with half of
           the blocks zero. Networks of packages that are missing are named and left out (pip install '.[zoo]').

Untuned, one thread. Each network is exported and built in processes of its own, with a time limit; rows are kept in
FOLDER/results.json as they come, and a second launch goes on where the first ended. The blocks that become zero are the
least of every convolution and linear layer but the first and, of linear ones, the last. The ratio is that of kerf's
pieces: where it is below 1, kerf.compile hands the whole network to the dense engine that won.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _zoo_networks

from kerf import files
from kerf.deploy.measure.environment import cpu, environment

Clock = Callable[[], float]  # seconds
SHARES = {"dense": 0.0, "half": 0.5}
HEAD = """\
| network | input | blocks | kerf's pieces of all | of the time | build s | GB | kerf ms (p10–p90) \
| fastest dense engine, ms | ratio | 95 % interval |
|-|-|-|-|-|-|-|-|-|-|-|"""


def main(argv: list[str] | None = None) -> int:
    a = parse(argv)
    if a.step:
        return step(a)
    kept = Results(a.folder / "results.json")
    print(HEAD, flush=True)
    for name in a.networks:
        for kind in a.kinds:
            row = kept.of(name, kind)
            if row is None or a.again or "failed" in row:
                row = kept.add({"network": name, "kind": kind, **measure(name, kind, a)})
            print(line(row), flush=True)
    where = environment()
    print(
        f"\n{where['cpu']}, {where['machine']['cores']} cores, load {where['machine']['load_average']}, {where['date']}"
    )
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(_zoo_networks.NETWORKS)
    p.add_argument("--folder", type=Path, default=Path("runs/zoo"))
    p.add_argument("--networks", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    p.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES), help="with zero blocks or without")
    p.add_argument("--again", action="store_true", help="measure networks that have rows once more")
    p.add_argument("--N", type=int, default=4)
    p.add_argument("--seconds", type=float, default=6, help="length of each race")
    p.add_argument("--cpu_time", action="store_true", help="race in seconds of CPU: on a machine that others keep busy")
    p.add_argument("--limit", type=float, default=600, help="seconds that a network may take to be exported, or built")
    p.add_argument("--step", nargs=2, metavar=("STEP", "KIND"), help=argparse.SUPPRESS)  # of the one network named
    return p.parse_args(argv)


class Results:
    """Rows of a JSON file, one for each network and kind of blocks; the newest counts."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Read each time: a second launch beside this one may add others."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def of(self, network: str, kind: str) -> dict[str, Any] | None:
        return next((r for r in self.rows if (r["network"], r["kind"]) == (network, kind)), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        key = row["network"], row["kind"]
        rows = [r for r in self.rows if (r["network"], r["kind"]) != key] + [row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write(self.path, json.dumps(rows, indent=1))
        return row


def measure(name: str, kind: str, a: argparse.Namespace) -> dict[str, Any]:
    """A row: made and built in processes of their own, or why not, as ``failed``."""
    folder = a.folder / name.replace(", ", "-")
    done = {}
    for stage in ("make", "build"):
        if stage == "make" and (folder / f"{kind}.onnx").exists():
            continue
        done = child(stage, name, kind, a)
        if "failed" in done:
            break
    return {**done, "cpu": cpu(), "date": environment()["date"]}


def child(stage: str, name: str, kind: str, a: argparse.Namespace) -> dict[str, Any]:
    """What a step in a process of its own answers: the last line of its output, as JSON."""
    command = [sys.executable, __file__, "--step", stage, kind, "--networks", name, "--folder", str(a.folder)]
    command += ["--N", str(a.N), "--seconds", str(a.seconds), *(["--cpu_time"] if a.cpu_time else [])]
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=a.limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"{stage}: more than {a.limit:.0f} s"}
    lines = ended.stdout.strip().splitlines()
    if ended.returncode or not lines:
        code = ended.returncode
        return {"failed": f"{stage}: {f'killed by signal {-code}' if code < 0 else f'exit code {code}'}"}
    return json.loads(lines[-1])


def step(a: argparse.Namespace) -> int:
    """In a process of its own: prints what it found, or what failed, as the last line."""
    (stage, kind), (name,) = a.step, a.networks
    folder = a.folder / name.replace(", ", "-")
    source = _zoo_networks.NETWORKS[name]
    try:
        if stage == "make":
            found = make(name, folder, kind, a.N)
        else:
            path, clock = folder / f"{kind}.onnx", time.process_time if a.cpu_time else time.perf_counter
            found = build(path, source.shape, SHARES[kind], a.N, a.seconds, clock)
    except ModuleNotFoundError as error:
        found = {"failed": f"package {error.name} is missing (pip install '.[zoo]')"}
    except Exception as error:  # whatever a network does: the others go on
        traceback.print_exc()
        found = {"failed": f"{stage}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    print(json.dumps(found))
    return 0


def make(name: str, folder: Path, kind: str, n: int) -> dict[str, Any]:
    """The dense file, or that with zero blocks, made of the dense one."""
    dense = folder / "dense.onnx"
    if not dense.exists():
        _zoo_networks.write(name, dense)
    if SHARES[kind]:
        halved(dense, folder / f"{kind}.onnx", _zoo_networks.NETWORKS[name].shape, n, SHARES[kind])
    return {}


def halved(dense: Path, path: Path, shape: tuple[int, ...], n: int, share: float) -> None:
    """``dense`` with the share of the 1xn blocks of its convolutions and linear layers zero."""
    from kerf.deploy.frontend import clean
    from kerf.deploy.frontend.zero_blocks import CONVOLUTIONS, LINEAR, zero_blocks

    model = clean.read(dense, sizes(dense, shape))
    zero_blocks(model, n, share, dense, layers=(*CONVOLUTIONS, *LINEAR))
    files.write(path, model.SerializeToString())


def sizes(path: Path, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape by the name of the file's only input."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    (name,) = {i.name for i in graph.input} - {t.name for t in graph.initializer}
    return {name: shape}


def build(path: Path, shape: tuple[int, ...], share: float, n: int, seconds: float, clock: Clock) -> dict[str, Any]:
    """The bundle, verified, timed and weighed; raced against the dense engines on the same file with fixed shapes."""
    import kerf

    said: list[str] = []
    began = time.monotonic()
    bundle = kerf.compile(
        path, n=n, sparsity=share or 0.5, shapes=sizes(path, shape), trials=0, against=(), seconds=0.1, say=said.append
    )
    spent = time.monotonic() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak, cpu_s = max(u.ru_maxrss for u in used), sum(u.ru_utime + u.ru_stime for u in used)
    assert bundle.report is not None
    pieces = bundle.report["pieces"]
    found = {"input": list(shape), "pieces": pieces, "build_s": spent, "build_cpu_s": cpu_s, "said": said}
    return {**found, "gb": peak * 1024 / 1e9, **race(bundle, path, shape, seconds, clock)}


def race(bundle: Any, path: Path, shape: tuple[int, ...], seconds: float, clock: Clock) -> dict[str, Any]:
    """Milliseconds by engine, and the ratio of the fastest dense one's to kerf's. Outputs are compared first."""
    import numpy as np

    from kerf.deploy.frontend import clean
    from kerf.deploy.measure import bench, peers

    fixed = path.with_name("raced.onnx")
    clean.write(path, fixed, sizes(path, shape))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    engines = [bench.Engine("kerf", bundle.run), *peers.of_file(fixed, 1)]
    measured = bench.race(engines, x, seconds=seconds, clock=clock)
    ms = {m.engine: {"median": m.median, "p10": m.p10, "p90": m.p90} for m in measured}
    return {"ms": ms, "speedup": bench.speedup(measured[0], measured[1:])}


def line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['network']} | | {row['kind']} | {row['failed']} |" + " |" * 7
    own = [p for p in row["pieces"] if p["engine"] == "kerf"]
    times = [p["us"] for p in row["pieces"]]
    share = f"{sum(p['us'] for p in own) / sum(times):.0%}" if None not in times else "100%" if own else "0%"
    kerf, ratio = row["ms"]["kerf"], row["speedup"]
    dense = row["ms"][ratio["against"]]["median"]
    cells = [
        row["network"], "×".join(map(str, row["input"])), row["kind"], f"{len(own)} of {len(row['pieces'])}", share,
        f"{row['build_s']:.0f}", f"{row['gb']:.1f}", f"{kerf['median']:.2f} ({kerf['p10']:.2f}–{kerf['p90']:.2f})",
        f"{ratio['against']} {dense:.2f}", f"{ratio['median']:.2f}", "{:.2f}–{:.2f}".format(*ratio["ci95"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("zoo", main))
