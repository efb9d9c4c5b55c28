"""What kerf-tune is asked on its command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from kerf import console
from kerf.console import Parser
from kerf.deploy.frontend.sizes import shapes_of
from kerf.deploy.quantise import calibration
from kerf.errors import BadInput
from kerf.kernels.precision import PRECISIONS
from kerf.tune.request import ENGINES, FORMATS, RECORDS, Request, bundle_of

SEARCHED = ("runs", "experiments")


@dataclass(frozen=True)
class Flags:
    """What was typed: the compilation, and how to speak of it."""

    request: Request
    quiet: bool
    json: bool


def parse(argv: list[str], description: str | None, program: str = "kerf-tune") -> Flags:
    others = "kerf-tune show, export-records and import-records read and carry measurements; each has --help."
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = Parser(program, description=description, epilog=others, formatter_class=formatter)
    p.add_argument("--onnx_path", type=Path, help="network; without it the newest .onnx under runs/ and experiments/")
    p.add_argument(
        "--bsr", type=int, nargs="+", default=[4], metavar="N",
        help="rows of a block: the N of 1xN pruning; of several, each layer has the largest that finds its zeros",
    )  # fmt: skip
    p.add_argument("--bsc", type=int, default=1, help="columns of a block; 1xN pruning has 1")
    p.add_argument("--sparsity", type=float, default=0.5, help="least share of zero blocks for a layer to go sparse")
    p.add_argument(
        "--target",
        default="native",
        help='"native", an LLVM CPU name, "llvm -mcpu=... -mtriple=...", or "cuda -arch=sm_90"',
    )
    p.add_argument("--precision", choices=PRECISIONS, help="of a GPU's products; f16 by default, sums are f32 always")
    p.add_argument("--rpc", default="", help="HOST:PORT of a TVM RPC tracker: measure and verify on its devices")
    p.add_argument("--rpc_key", default="", help="the key these devices are registered under")
    p.add_argument("--threads", type=int, default=1, help="worker threads, of kerf and of the engines it races")
    p.add_argument("--batch", type=int, help="images per call, where the file leaves it open (then 1)")
    p.add_argument(
        "--shape", action="append", nargs="+", default=[], metavar="NAME=1x3x640x640",
        help="sizes of inputs that the file leaves open; again for other sizes in the same bundle",
    )  # fmt: skip
    p.add_argument("--trials", type=int, default=1000, help="configurations to measure at most; 0 = untuned")
    p.add_argument("--tune_minutes", type=float, help="stop measuring after this many minutes")
    p.add_argument("--tolerance", type=float, default=0.005, help="stop when less than this share is to be gained")
    p.add_argument("--against", default="onnxruntime,openvino", help="dense engines to race, those installed")
    p.add_argument("--records", type=Path, default=RECORDS, help="measurements, reused and extended")
    p.add_argument("--out", type=Path, help="bundle folder; by default <onnx name>.kerf beside the file")
    p.add_argument(
        "--engine", choices=ENGINES, default="auto",
        help="auto: a dense engine runs what it runs faster, if need be all; kerf: whatever kerf can run stays kerf's",
    )  # fmt: skip
    p.add_argument(
        "--format", choices=FORMATS, default="bundle",
        help="ort: the bundle holds a model.onnx, too, whose pieces of kerf's are custom operators of ONNX Runtime",
    )  # fmt: skip
    p.add_argument("--seconds", type=float, default=10.0, help="how long the engines race")
    p.add_argument("--int8", action="store_true", help="quantise the f32 network first, with --calibration")
    calibration.add_flags(p)
    console.add_flags(p)
    a = p.parse_args(argv)
    if a.bsc != 1:
        raise BadInput(
            f"--bsc {a.bsc}: a block is N kernels of one input channel, as pruning makes them, and kernels load one "
            "channel for each; blocks of several columns would be zero far less often: use --bsc 1"
        )
    path = a.onnx_path or newest()
    request = Request(
        path=path, out=a.out or bundle_of(path, a.int8), n=tuple(a.bsr), sparsity=a.sparsity, target=a.target,
        precision=a.precision or "", threads=a.threads, batch=a.batch, trials=a.trials, minutes=a.tune_minutes,
        shapes=tuple(shapes_of(given) for given in a.shape), tolerance=a.tolerance,
        against=tuple(name for name in a.against.split(",") if name), seconds=a.seconds, engine=a.engine,
        format=a.format, records=a.records, rpc=a.rpc, rpc_key=a.rpc_key, int8=a.int8, calibration=a.calibration,
        calibration_method=a.calibration_method, calibration_images=a.calibration_images, mean=tuple(a.mean),
        std=tuple(a.std),
    )  # fmt: skip
    return Flags(request, a.quiet, a.json)


def newest() -> Path:
    found = [p for folder in SEARCHED for p in Path(folder).glob("**/*.onnx")]
    if not found:
        raise FileNotFoundError(
            "no .onnx under runs/ or experiments/; give --onnx_path, or run imagenet.py with --export_onnx first"
        )
    return max(found, key=lambda p: p.stat().st_mtime)
