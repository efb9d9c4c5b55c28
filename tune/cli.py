"""kerf-tune (model_tune.py): .onnx -> convert -> search -> build -> verify -> race -> bundle with its report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy import bench, bundle, inspect, report, runtime, targets
from deploy.build import Built, build, record
from deploy.convert import Network, convert
from deploy.environment import environment
from deploy.verify import Mismatch, blame, verify
from kernels.fma_peak import macs_per_us
from kernels.kernel import dense_twin
from kernels.record import RecordBook
from tune.search import search

SEARCHED = ("runs", "experiments")


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
    except (ValueError, FileNotFoundError, ImportError, Mismatch) as error:
        print(f"kerf-tune: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kerf-tune: interrupted; measurements so far are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str]) -> Args:
    p = Parser(
        "kerf-tune", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
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
    network = convert(args.onnx_path, args.bsr, args.sparsity, args.batch)
    target = targets.parse(args.target, args.threads)
    describe_layers(network, args)
    foreign = targets.foreign(target)
    if foreign:
        print(f"{foreign}: building without tuning and without a race")
    book = RecordBook(args.records)
    if args.trials and not foreign:
        summary = search(network, target, args.threads, book, args.trials, args.tune_minutes)
        print(
            f"tuned: {summary.problems} distinct layers, {summary.measured} measured, {summary.reused} reused, "
            f"{summary.failed} failed, {summary.seconds:.0f} s"
        )
    built = build(network, target, book)
    layers = layer_table(network, built, book, None if foreign else args.threads * macs_per_us(target))
    manifest = {
        "model": args.onnx_path.name,
        "model_sha256": bundle.sha256(args.onnx_path),
        "input": list(network.input_shape),
        "target": targets.describe(target),
        "needs": targets.needs(target),
        "threads": args.threads,
        "tvm": environment()["versions"]["apache-tvm"],
        "layers": [{k: row[k] for k in ("name", "shape", "block", "density", "kernel", "config")} for row in layers],
    }
    if foreign:
        save(args, manifest, built, network, book, target)
        print(f"bundle: {args.out} (not verified: this machine cannot run it)")
        return
    check(network, built, args, manifest)
    save(args, manifest, built, network, book, target)
    result = race(network, args, target, layers)
    result["commands"] = [shlex.join(["python", "model_tune.py", *words])]
    page = report.write(result, args.out)
    print(report.table(result))
    print(f"bundle: {args.out}\nreport: {page}")


def describe_layers(network: Network, args: Args) -> None:
    sparse = network.sparse_layers
    print(
        f"{args.onnx_path}: {len(network.layers)} layers, {len(sparse)} with at least {args.sparsity:.0%} "
        f"zero {args.bsr}x1 blocks"
    )
    if not sparse:
        share = max((1 - d.block for d in inspect.densities(args.onnx_path, args.bsr)), default=0)
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
                "config": dict(choice.config),
                "kerf_us": own.us if own else None,
                "dense_us": dense.us if dense else None,
                "peak_share": share,
            }
        )
    return rows


def check(network: Network, built: Built, args: Args, manifest: dict) -> None:
    """Raises Mismatch, naming the layers that are wrong on their own, before a bundle exists."""
    session = runtime.Session(built.executable, list(built.packed.values()), manifest, args.threads)
    try:
        verify(session.run, args.onnx_path, network.input_shape)
    except Mismatch as error:
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error


def save(args: Args, manifest: dict, built: Built, network: Network, book: RecordBook, target) -> None:
    wanted = {q.to_json() for layer in network.layers.values() for q in (layer.problem, dense_twin(layer.problem))}
    mine = [r.to_json() for r in book.records if r.problem in wanted and r.target == targets.describe(target)]
    bundle.save(args.out, manifest, built.export, built.packed, "".join(line + "\n" for line in mine))


def race(network: Network, args: Args, target, layers: list[dict]) -> dict:
    """Verify the bundle as it lies on disk, then race it."""
    session = runtime.load(args.out, args.threads)
    verified = verify(session.run, args.onnx_path, network.input_shape)
    engines = [bench.Engine("kerf", session.run)]
    makers = {"onnxruntime": bench.onnxruntime_engine, "openvino": bench.openvino_engine}
    for name in args.against:
        try:
            engines.append(makers[name](args.onnx_path, args.threads))
        except ImportError:
            print(f"{name} is not installed; raced without it (pip install 'kerf[peers]')")
    x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
    measured = bench.race(engines, x, seconds=args.seconds)
    result = {
        "model": args.onnx_path.name,
        "target": targets.describe(target),
        "threads": args.threads,
        "batch": network.input_shape[0],
        **{k: verified[k] for k in ("verified", "max_abs_error")},
        "latency_ms": {m.engine: m.to_json() for m in measured},
        "speedup": bench.speedup(measured[0], measured[1:]) if len(measured) > 1 else None,
        "bytes": {"dense": network.weights_bytes, "bundle": bundle.size_bytes(args.out)},
        "layers": layers,
        **environment(),
    }
    summary, metrics = (args.onnx_path.parent / name for name in ("summary.json", "metrics.jsonl"))
    if summary.exists():
        result["accuracy"] = json.loads(summary.read_text())
    if metrics.exists():
        result["training"] = [json.loads(line) for line in metrics.read_text().splitlines()]
    sparsest = next((row["name"] for row in layers if row["block"]), None)
    if sparsest in {d.name for d in inspect.densities(args.onnx_path, args.bsr)}:
        result["block_pattern"] = inspect.pattern(args.onnx_path, sparsest, args.bsr)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
