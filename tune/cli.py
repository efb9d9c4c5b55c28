"""kerf-tune (model_tune.py): .onnx -> convert -> search -> build -> verify -> race -> bundle with its report."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tvm.target import Target

from deploy import bench, bundle, inspect, report, runtime, targets
from deploy.build import Built, build, record
from deploy.convert import Network, convert
from deploy.environment import environment
from deploy.flags import Parser
from deploy.onnx_graph import write_fixed
from deploy.verify import Mismatch, blame, verify
from kernels.fma_peak import macs_per_us
from kernels.kernel import dense_twin
from kernels.record import RecordBook
from tune.search import search

SEARCHED = ("runs", "experiments")
MANIFEST = ("name", "shape", "block", "density", "kernel", "config", "together_with")  # of a layer's row


@dataclass(frozen=True)
class Args:
    """What was asked, as one value: printed at the start."""

    onnx_path: Path
    bsr: int
    sparsity: float
    target: str
    threads: int
    batch: int | None
    trials: int
    tune_minutes: float | None
    against: tuple[str, ...]
    records: Path
    out: Path
    seconds: float


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        run(parse(words), words)
    except (ValueError, OSError, ImportError, Mismatch) as error:
        print(f"kerf-tune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kerf-tune: interrupted; measurements so far are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str]) -> Args:
    p = Parser("kerf-tune", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--onnx_path", type=Path, help="network; without it the newest .onnx under runs/ and experiments/")
    p.add_argument("--bsr", type=int, default=4, help="rows of a block: the N of 1xN pruning")
    p.add_argument("--bsc", type=int, default=1, help="columns of a block; 1xN pruning has 1")
    p.add_argument("--sparsity", type=float, default=0.5, help="least share of zero blocks for a layer to go sparse")
    p.add_argument("--target", default="native", help='"native", an LLVM CPU name, or "llvm -mcpu=... -mtriple=..."')
    p.add_argument("--threads", type=int, default=1, help="worker threads, of kerf and of the engines it races")
    p.add_argument("--batch", type=int, help="images per call, where the file leaves it open (then 1)")
    p.add_argument("--trials", type=int, default=200, help="configurations to measure at most; 0 = defaults, untuned")
    p.add_argument("--tune_minutes", type=float, help="stop measuring after this many minutes")
    p.add_argument("--against", default="onnxruntime,openvino", help="dense engines to race, those installed")
    p.add_argument("--records", type=Path, default=Path("runs/records.jsonl"), help="measurements, reused and extended")
    p.add_argument("--out", type=Path, help="bundle folder; by default <onnx name>.kerf beside the file")
    p.add_argument("--seconds", type=float, default=10.0, help="how long the engines race")
    a = p.parse_args(argv)
    if a.bsc != 1:
        raise ValueError(f"--bsc {a.bsc}: 1xN blocks have one column; use --bsc 1")
    if a.threads < 1:
        raise ValueError(f"--threads {a.threads}: expected at least 1")
    if a.batch is not None and a.batch < 1:
        raise ValueError(f"--batch {a.batch}: expected at least 1")
    for name in ("tune_minutes", "seconds"):
        if getattr(a, name) is not None and not getattr(a, name) > 0:
            raise ValueError(f"--{name} {getattr(a, name)}: expected more than 0")
    if a.trials < 0:
        raise ValueError(f"--trials {a.trials}: expected 0 (no tuning) or more")
    a.against = tuple(name for name in a.against.split(",") if name)
    unknown = sorted(set(a.against) - {"onnxruntime", "openvino"})
    if unknown:
        raise ValueError(f"--against: {', '.join(unknown)} is not known; expected onnxruntime, openvino")
    a.onnx_path = a.onnx_path or newest()
    a.out = a.out or a.onnx_path.with_suffix(".kerf")
    del a.bsc
    return Args(**vars(a))


def newest() -> Path:
    found = [p for folder in SEARCHED for p in Path(folder).glob("**/*.onnx")]
    if not found:
        raise FileNotFoundError(
            "no .onnx under runs/ or experiments/; give --onnx_path, or run imagenet.py with --export_onnx first"
        )
    return max(found, key=lambda p: p.stat().st_mtime)


def run(args: Args, words: list[str]) -> None:
    """The whole stage. What can be wrong with the input is found before anything of the bundle is written."""
    print("  ".join(f"{k}={v}" for k, v in vars(args).items()))
    bundle.refuse_foreign(args.out)
    network = convert(args.onnx_path, args.bsr, args.sparsity, args.batch)
    target = targets.parse(args.target, args.threads)
    describe_layers(network, args)
    foreign = targets.foreign(target)
    if foreign:
        print(f"{foreign}: building without tuning, verification and race")
    book = RecordBook(args.records if args.trials else None)
    if args.trials and not foreign:
        summary = search(network, target, args.threads, book, args.trials, args.tune_minutes)
        print(
            f"tuned: {summary.problems} distinct layers, {summary.measured} measured, {summary.reused} reused, "
            f"{summary.failed} failed, {summary.seconds:.0f} s"
        )
    built = build(network, target, book)
    layers = layer_table(network, built, book, None if foreign else args.threads * macs_per_us(target))
    with bundle.replacing(args.out) as folder:
        bundle.write(folder, manifest(network, args, target, layers), built.export, built.packed, used(book, network))
        if not foreign:
            session = runtime.load(folder, args.threads)
            verified = check(session, network, built)
            result = {
                "model": args.onnx_path.name,
                "target": targets.describe(target),
                "threads": args.threads,
                "batch": network.input_shape[0],
                **verified,
                **race(session, network, args),
                "bytes": {"dense": network.weights_bytes, "bundle": bundle.size_bytes(folder)},
                "layers": layers,
                "commands": [shlex.join(["python", "model_tune.py", *words])],
                **extras(args, layers),
                **environment(),
            }
            report.write(result, folder)
    if foreign:
        print(f"bundle: {args.out}, not verified: this machine cannot run it")
    else:
        print(report.table(result))
        print(f"bundle: {args.out}\nreport: {args.out / 'report.html'}")


def describe_layers(network: Network, args: Args) -> None:
    sparse = network.sparse_layers
    print(
        f"{args.onnx_path}: {len(network.layers)} layers, {len(sparse)} with at least {args.sparsity:.0%} "
        f"zero {args.bsr}x1 blocks"
    )
    if not sparse:
        found = inspect.densities(args.onnx_path, args.bsr)
        share = max((1 - d.block for d in found if d.op in ("conv", "dense")), default=0)
        print(f"  nothing goes sparse: the sparsest layer has {share:.0%} zero blocks; see --bsr and --sparsity")


def layer_table(network: Network, built: Built, book: RecordBook, peak: float | None) -> list[dict]:
    """A row per layer: what computes it, and how long that and the dense kernel took when they were measured."""
    rows = []
    for name, layer in network.layers.items():
        choice, p = built.choices[name], layer.problem
        own, dense = (record(q, built.target, book) for q in (choice.problem, dense_twin(p)))
        blocks = -(-p.out_channels // p.block) * p.in_channels if p.block else None
        share = choice.problem.macs / (own.us * peak) if own and peak else None
        rows.append(
            {
                "name": name,
                "op": "depthwise" if p.depthwise else layer.op,
                "shape": p.describe(),
                "block": f"{choice.problem.block}x1" if choice.problem.block else None,
                "density": p.nnzb / blocks if blocks else 1.0,
                "kernel": choice.kernel,
                "together_with": built.pairs.get(name),
                "config": dict(choice.config),
                "kerf_us": own.us if own else None,
                "dense_us": dense.us if dense else None,
                "peak_share": share,
            }
        )
    return rows


def manifest(network: Network, args: Args, target: Target, layers: list[dict]) -> dict:
    return {
        "model": args.onnx_path.name,
        "model_sha256": bundle.sha256(args.onnx_path),
        "input": list(network.input_shape),
        "target": targets.describe(target),
        "needs": targets.needs(target),
        "threads": args.threads,
        "tvm": environment()["versions"]["apache-tvm"],
        "versions": environment()["versions"],
        "layers": [{k: row[k] for k in MANIFEST} for row in layers],
    }


def used(book: RecordBook, network: Network) -> str:
    """The records of this network's problems, as lines."""
    wanted = {q.to_json() for layer in network.layers.values() for q in (layer.problem, dense_twin(layer.problem))}
    return "".join(r.to_json() + "\n" for r in book.records if r.problem in wanted)


def check(session: runtime.Session, network: Network, built: Built) -> dict:
    """{verified, max_abs_error, max_relative_error}. Raises Mismatch, naming the layers that are wrong on their own."""
    try:
        return verify(session.run, network.path, network.input_shape)
    except Mismatch as error:
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error


def race(session: runtime.Session, network: Network, args: Args) -> dict:
    """{latency_ms, speedup}: kerf and the dense engines, which get the same file with the same fixed shapes."""
    makers = {"onnxruntime": bench.onnxruntime_engine, "openvino": bench.openvino_engine}
    engines = [bench.Engine("kerf", session.run)]
    with tempfile.TemporaryDirectory(prefix="kerf-race-") as temporary:
        dense = Path(temporary) / "dense.onnx"
        write_fixed(args.onnx_path, args.batch, dense)
        for name in args.against:
            try:
                engines.append(makers[name](dense, args.threads))
            except ImportError:
                print(f"{name} is not installed; raced without it (pip install 'kerf[peers]')")
            except RuntimeError as error:
                raise ValueError(f"{name} cannot run {args.onnx_path}: {error}; leave it out of --against") from error
        x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
        measured = bench.race(engines, x, seconds=args.seconds)
    return {
        "latency_ms": {m.engine: m.to_json() for m in measured},
        "speedup": bench.speedup(measured[0], measured[1:]) if len(measured) > 1 else None,
    }


def extras(args: Args, layers: list[dict]) -> dict:
    """What the folder of imagenet.py's run adds to the report, and the block pattern of the largest sparse layer."""
    found = {}
    job = args.onnx_path.parent
    if args.onnx_path.name == "model.onnx" and (job / "summary.json").exists():
        found["accuracy"] = strict_json((job / "summary.json").read_text())
        lines = (job / "metrics.jsonl").read_text().splitlines() if (job / "metrics.jsonl").exists() else []
        found["training"] = [row for row in map(strict_json, lines) if row is not None]
    sparse = {row["name"] for row in layers if row["block"]}
    shapes = {d.name: math.prod(d.shape) for d in inspect.densities(args.onnx_path, args.bsr) if d.name in sparse}
    if shapes:
        found["block_pattern"] = inspect.pattern(args.onnx_path, max(shapes, key=shapes.get), args.bsr)
    return {key: value for key, value in found.items() if value is not None}


def strict_json(text: str) -> dict | None:
    """None for a torn line or a row with NaN: decoration of the report is no reason to fail."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return None
    return value


if __name__ == "__main__":
    raise SystemExit(main())
