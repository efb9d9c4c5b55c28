"""What 1xN blocks bring on this machine: zero a network's smallest blocks, compile it, verify, race, report. No torch.

    benchmark --arch mobilenet_v2 --N 4 --sparsity 0.5    one of the image's networks, random weights
    benchmark --onnx_path /models/x.onnx --as_is          your own; without --as_is it is pruned first

Latency depends on shapes and on which blocks are zero, not on what the others hold. Into --out go NAME.onnx, the
bundle NAME.kerf, which holds its report, and copies of the latest report.html and report.json.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import onnx

from kerf import console, files, temporary
from kerf.deploy.frontend import clean
from kerf.deploy.frontend.zero_blocks import zero_blocks
from kerf.deploy.runtime import bundle
from kerf.errors import BadInput
from kerf.tune.cli import INTERRUPTED, summary
from kerf.tune.pipeline import carry_out
from kerf.tune.request import Request, bundle_of


def main(argv: list[str] | None = None) -> int:
    """0; 2 with one line on stderr for input that cannot be used; 130 when interrupted."""
    words = sys.argv[1:] if argv is None else argv
    return console.guarded("benchmark", lambda: run(parse(words), shlex.join(["benchmark", *words])), INTERRUPTED)


def parse(argv: list[str]) -> argparse.Namespace:
    p = console.Parser("benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = p.add_mutually_exclusive_group()
    which.add_argument("--arch", default="mobilenet_v2", help="a network of the image (default mobilenet_v2)")
    which.add_argument("--onnx_path", type=Path, help="your own network in its place")
    p.add_argument("--as_is", action="store_true", help="race --onnx_path with the zeros it has, prune nothing")
    p.add_argument("--N", type=int, default=4, help="output kernels of a block (4)")
    p.add_argument("--sparsity", type=float, default=0.5, help="share of every layer's blocks that is zero (0.5)")
    p.add_argument("--int8", action="store_true", help="on 8-bit integers, raced against dense engines on these, too")
    p.add_argument("--calibration", type=Path, metavar="DIR|FILE", help="samples for --int8; --arch takes random ones")
    p.add_argument("--trials", type=int, default=0, help="configurations to measure; 0, the default, takes seconds")
    p.add_argument("--tune_minutes", type=float, help="stop tuning then; use with --trials 1000")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--batch", type=int, help="images per call, where the file leaves it open")
    p.add_argument("--seconds", type=float, default=10, help="length of the race (10)")
    p.add_argument("--against", default="onnxruntime,openvino", help="dense engines to race")
    p.add_argument("--out", type=Path, default=Path("/out"), help="folder for the results (/out)")
    folder = os.environ.get("KERF_NETWORKS", "/opt/kerf/networks")
    p.add_argument("--networks", type=Path, default=Path(folder), help="folder of --arch's .onnx files")
    return p.parse_args(argv)


def run(args: argparse.Namespace, command: str) -> None:
    """What can be wrong with the input is found before anything is written."""
    if args.N < 1:
        raise BadInput(f"--N {args.N}: a block has at least one kernel; try 4")
    if not 0 <= args.sparsity < 1:
        raise BadInput(f"--sparsity {args.sparsity}: expected a share of blocks, at least 0 and below 1")
    if args.as_is and not args.onnx_path:
        raise BadInput("--as_is: the image's networks have no zeros; give --onnx_path, or leave it out")
    source = args.onnx_path or known(args.arch, args.networks)
    model = clean.read(source, batch=args.batch)
    name = source.stem if args.as_is else f"{source.stem}-1x{args.N}-{args.sparsity:g}"
    network = source if args.as_is else args.out / f"{name}.onnx"
    built = bundle_of(args.out / f"{name}.onnx", args.int8)
    with samples(args, model) as calibration:
        compiled(args, command, model, source, network, built, calibration)


def compiled(
    args: argparse.Namespace, command: str, model: onnx.ModelProto, source: Path, network: Path, built: Path,
    calibration: Path | None,
) -> None:  # fmt: skip
    request = Request(
        network, built, (args.N,), args.sparsity, threads=args.threads, batch=args.batch, trials=args.trials,
        minutes=args.tune_minutes, against=tuple(name for name in args.against.split(",") if name),
        seconds=args.seconds, records=args.out / "records.jsonl", int8=args.int8, calibration=calibration,
    )  # fmt: skip
    if not args.as_is:
        zero_blocks(model, args.N, args.sparsity, source)
    refuse_unwritable(args.out)
    bundle.refuse_foreign(built)
    with nullcontext() if args.as_is else written(network, model.SerializeToString()):
        print(summary(carry_out(request, command, print)))
    for page in ("report.json", "report.html"):
        files.write(args.out / page, (built / page).read_bytes())


@contextmanager
def samples(args: argparse.Namespace, model: onnx.ModelProto) -> Iterator[Path | None]:
    """What integers are calibrated with: as asked; where weights are random, random numbers are as good as images."""
    if args.calibration or args.onnx_path or not args.int8:
        yield args.calibration
        return
    rng = np.random.default_rng(0)
    with temporary.folder("benchmark") as folder:
        shapes = {x.name: [d.dim_value or 1 for d in x.type.tensor_type.shape.dim] for x in model.graph.input}
        arrays = {name: rng.standard_normal((4, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}
        np.savez(folder / "random.npz", allow_pickle=False, **arrays)
        yield folder / "random.npz"


def known(arch: str, folder: Path) -> Path:
    """The image's file of a network."""
    names = sorted(p.stem for p in folder.glob("*.onnx"))
    if not names:
        raise FileNotFoundError(f"no networks in {folder}; give --onnx_path, or run docker/export_networks.py {folder}")
    if arch not in names:
        raise BadInput(f"--arch {arch}: not in {folder}; expected {', '.join(names)}, or --onnx_path for another")
    return folder / f"{arch}.onnx"


def refuse_unwritable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{folder}: user {os.getuid()} may not write there; run with --user $(id -u):$(id -g), or open the folder"
        )


@contextmanager
def written(path: Path, content: bytes) -> Iterator[None]:
    """Within, and after a block that ends well, ``path`` has this content; after one that fails, what it had before."""
    before = path.read_bytes() if path.exists() else None
    files.write(path, content)
    try:
        yield
    except BaseException:
        path.unlink() if before is None else files.write(path, before)
        raise


if __name__ == "__main__":
    raise SystemExit(main())
