"""kerf-tune (model_tune.py): .onnx -> convert -> search -> build -> verify -> race -> bundle with its report."""

from __future__ import annotations

import math
import shlex
import sys
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from kerf import console
from kerf.deploy.compiler import targets
from kerf.deploy.compiler.blame import blame
from kerf.deploy.compiler.build import Built, build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.network import Network
from kerf.deploy.frontend.onnx_graph import write_fixed
from kerf.deploy.measure import bench
from kerf.deploy.measure.environment import environment
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import ALLOWED, verify
from kerf.deploy.report import inspect, report
from kerf.deploy.runtime import bundle
from kerf.deploy.runtime import session as runtime
from kerf.errors import BadInput, DeviceLost, Mismatch
from kerf.kernels.cpu.fma_peak import macs_per_us
from kerf.tune import bundle_contents, records_cli
from kerf.tune.flags import Args, parse
from kerf.tune.places import Gpu, Here, Place, Tracker
from kerf.tune.progress import Progress
from kerf.tune.remote import RemoteSession
from kerf.tune.search import Summary, search
from kerf.tune.whole_network import better


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    warnings.formatwarning = lambda message, *_: f"kerf-tune: warning: {message}\n"
    try:
        if words and words[0] in records_cli.COMMANDS:
            records_cli.run(words)
        else:
            args = parse(words, __doc__)
            with console.speaking(args.quiet, args.json):
                found = run(args, words)
            if args.json:
                console.answer(found)
    except (ValueError, OSError, ImportError, Mismatch, DeviceLost) as error:
        print(f"kerf-tune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kerf-tune: interrupted; measurements so far are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def run(args: Args, words: list[str]) -> dict:
    """The whole stage, and what --json says of it.

    What can be wrong with the input is found before anything of the bundle is written.
    """
    target = targets.parse(args.target, args.threads)
    targets.linking(targets.triple(target))  # refuses before anything is built
    on_gpu = targets.on_gpu(target)
    args = replace(args, precision=args.precision or ("f16" if on_gpu else "f32"))
    print("  ".join(f"{k}={v}" for k, v in vars(args).items() if k not in ("quiet", "json")))
    bundle.refuse_foreign(args.out)
    if on_gpu and (args.rpc or args.threads > 1):
        raise BadInput(f"--target {args.target}: GPUs take neither --rpc nor --threads")
    if not on_gpu and args.precision != "f32":
        raise BadInput(f"--precision {args.precision}: CPU kernels compute in f32; it chooses a GPU's arithmetic")
    network = convert(args.onnx_path, args.bsr, args.sparsity, args.batch, args.precision)
    describe_layers(network, args)
    foreign = None if args.rpc else targets.foreign(target)
    place = place_of(args, on_gpu and not foreign)
    if foreign:
        print(f"{foreign}: building without tuning, verification and race")
    book, summary = RecordBook(args.records if args.trials else None), None
    if args.trials and not foreign:
        summary = search(
            network, target, args.threads, book, trials=args.trials, minutes=args.tune_minutes,
            tolerance=args.tolerance, place=place, progress=Progress(),
        )  # fmt: skip
        print(told(summary))
    if args.trials and not foreign and not args.rpc and not on_gpu:
        built, said = better(network, target, args.threads, book)
        print(f"  {said}")
    else:
        built = build(network, target, book, place.provenance())
    peak = None if foreign or args.rpc or on_gpu else args.threads * macs_per_us(target)
    layers = bundle_contents.layers(network, built, book, place.provenance(), peak, min(args.bsr))
    with bundle.replacing(args.out) as folder:
        described = bundle_contents.manifest(network, args, built, layers)
        bundle.write(folder, described, built.export, built.packed, bundle_contents.used(book, network), built.code)
        if not foreign:
            measured = on_devices(folder, place, network, args) if args.rpc else here(folder, network, built, args)
            result = {
                "model": args.onnx_path.name,
                "target": targets.describe(target),
                "threads": args.threads,
                "batch": network.input_shape[0],
                "bsr": list(args.bsr),
                **measured,
                "bytes": {"dense": network.weights_bytes, "bundle": bundle.size_bytes(folder)},
                "layers": layers,
                **environment(),
                **({"cpu": place.provenance()["cpu"]} if args.rpc or on_gpu else {}),
            }
            result |= bundle_contents.job(args.onnx_path, result, command(args, words))
            result["block_patterns"] = bundle_contents.patterns(network, layers)
            report.write(result, folder)
    if foreign:
        print(f"bundle: {args.out}, not verified: this machine cannot run it")
        return bundle_contents.unverified(args, target, foreign)
    print(report.table(result))
    print(f"bundle: {args.out}\nreport: {args.out / 'report.html'}")
    return bundle_contents.figures(args, result, summary)


def place_of(args: Args, on_gpu: bool) -> Place:
    """Where candidates run."""
    if args.rpc:
        return Tracker.parse(args.rpc, args.rpc_key)
    return Gpu(args.precision) if on_gpu else Here()


def command(args: Args, words: list[str]) -> str:
    """What was typed, and which file was found where none was named."""
    named = any(word.startswith("--onnx") for word in words)
    return shlex.join(["python", "model_tune.py", *words, *([] if named else [f"--onnx_path={args.onnx_path}"])])


def here(folder: Path, network: Network, built: Built, args: Args) -> dict:
    """Checked and raced on this machine."""
    session = runtime.load(folder, args.threads)
    return {
        **check(session, network, built, args.precision),
        **race(session, network, args, targets.on_gpu(built.target)),
    }


def on_devices(folder: Path, place: Tracker, network: Network, args: Args) -> dict:
    """Checked and timed on a device; the dense engines are not there to be raced."""
    with RemoteSession(folder, place, args.threads) as session:
        verified = verify(session.run, network.path, network.input_shape)
        x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
        return {**verified, "latency_ms": {"kerf": session.measure(x).to_json()}, "speedup": None}


NOISY = 0.1  # of a gain, between a search's measurement and the last


def told(s: Summary) -> str:
    """What a search did, and where its time went."""
    seconds = s.seconds["total"]
    text = (
        f"tuned: {s.problems} distinct layers, {s.measured} measured, {s.reused} reused, {s.failed} failed, "
        f"{seconds:.0f} s; ended because of: {s.stopped}"
    )
    if s.measured:
        share = {part: spent / seconds for part, spent in s.seconds.items()}
        text += f"\n  compiling {share['build']:.0%}, measuring {share['measure']:.0%} of the time"
    if s.before_us < math.inf:
        text += f"\n  layers together: untuned {s.before_us / 1e3:.3f} ms, tuned {s.after_us / 1e3:.3f} ms"
    if s.drift:
        off = sorted(abs(ratio - 1) for ratio in s.drift)
        text += f"\n  winners over their defaults, measured again: off by {off[len(off) // 2]:.1%} (median), "
        text += f"{off[-1]:.1%} at most"
        if off[len(off) // 2] > NOISY:
            text += "; other programs kept the machine busy: the same command on an idle one chooses better"
    return text


def describe_layers(network: Network, args: Args) -> None:
    sparse = network.sparse_layers
    print(
        f"{args.onnx_path}: {len(network.layers)} layers, {len(sparse)} with at least {args.sparsity:.0%} "
        f"zero blocks of {' or '.join(map(str, args.bsr))} rows"
    )
    if not sparse:
        found = [d for n in args.bsr for d in inspect.densities(args.onnx_path, n)]
        share = max((1 - d.block for d in found if d.op in ("conv", "dense")), default=0)
        print(f"  nothing goes sparse: the sparsest layer has {share:.0%} zero blocks; see --bsr and --sparsity")


def check(session: runtime.Session, network: Network, built: Built, precision: str) -> dict:
    """{verified, max_abs_error, max_relative_error}. Raises Mismatch, naming the layers that are wrong on their own."""
    try:
        return verify(session.run, network.path, network.input_shape, precision=precision)
    except Mismatch as error:
        if targets.on_gpu(built.target):
            raise
        wrong = blame(network, built)
        raise Mismatch(f"{error}; wrong layers: {', '.join(wrong) or 'none on its own'}") from error


def race(session: runtime.Session, network: Network, args: Args, on_gpu: bool) -> dict:
    """{latency_ms, speedup}: kerf and the dense engines, which get the same file with the same fixed shapes.

    On a GPU the image comes from the host and the result goes back to it.
    """
    makers = {"onnxruntime": bench.onnxruntime_engine, "openvino": bench.openvino_engine}
    if on_gpu:
        makers = {"onnxruntime": partial(bench.onnxruntime_engine, provider="CUDAExecutionProvider")}
    engines = [bench.Engine("kerf", session.run)]
    with tempfile.TemporaryDirectory(prefix="kerf-race-") as temporary:
        dense = Path(temporary) / "dense.onnx"
        write_fixed(args.onnx_path, args.batch, dense)
        for name in (n for n in args.against if n in makers):
            try:
                engines.append(makers[name](dense, args.threads))
            except ImportError:
                print(f"{name} is not installed{' for CUDA' if on_gpu else ''}; raced without it")
            except RuntimeError as error:
                raise BadInput(f"{name} cannot run {args.onnx_path}: {error}; leave it out of --against") from error
        x = np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)
        allowed = {} if args.precision == "f32" else {"tolerance": ALLOWED[args.precision]}
        measured = bench.race(engines, x, seconds=args.seconds, **allowed)
    return {
        "latency_ms": {m.engine: m.to_json() for m in measured},
        "speedup": bench.speedup(measured[0], measured[1:]) if len(measured) > 1 else None,
    }


if __name__ == "__main__":
    raise SystemExit(main())
