"""kerf prune X.onnx: flags in; the pruned file, and a table of what each layer lost, out."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kerf import console
from kerf.compress.onnx_file.pruning import prune_onnx
from kerf.deploy.frontend.sizes import shapes_of
from kerf.deploy.quantise import calibration


def build_parser(program: str) -> console.Parser:
    parser = console.Parser(
        program, description="Prunes an .onnx file to 1xN blocks by calibration alone: no code, no labels, no training."
    )
    parser.add_argument("file", type=Path, help=".onnx of f32")
    calibration.add_samples(parser, "samples", required=True, images=1024)
    parser.add_argument(
        "--sparsity", type=float, metavar="P", help="share of each layer's blocks to zero (default 0.5)"
    )
    parser.add_argument(
        "--speedup_target", type=float, metavar="X",
        help="in its place: shares with which the compiled file runs X times as fast as the fastest dense engine here",
    )  # fmt: skip
    parser.add_argument("--N", type=int, default=4, help="consecutive output kernels in a block")
    parser.add_argument("--full", action="store_true", help="prune Gemm and MatMul, too")
    parser.add_argument(
        "--row_multiple", type=int, default=0, metavar="M",
        help="all block rows of a layer keep equally many blocks, a multiple of M; 0: the dearest, wherever they are",
    )  # fmt: skip
    parser.add_argument(
        "--rearrange", action="store_true", help="put filters that need the same inputs side by side first"
    )
    parser.add_argument("--int8", action="store_true", help="quantise what is left, with the same samples")
    parser.add_argument("--out", type=Path, help="the file to write; by default <name>.pruned.onnx beside the other")
    parser.add_argument(
        "--shape", action="append", default=[], metavar="NAME=SIZES", help="sizes of an input that the file leaves open"
    )
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: all cores")
    console.add_flags(parser)
    return parser


def main(argv: Sequence[str], program: str) -> int:
    """0, or 2 with one line on stderr for what a person can mend, 130 when interrupted."""
    return console.guarded(program, lambda: work(build_parser(program).parse_args(argv)))


def work(args: argparse.Namespace) -> None:
    with console.speaking(args.quiet, args.json):
        asked = calibration.Calibration(
            args.calibration, images=args.calibration_images, mean=tuple(args.mean), std=tuple(args.std)
        )
        out = args.out or args.file.with_suffix(".pruned.onnx")
        made = prune_onnx(
            args.file, out, asked, sparsity=args.sparsity, speedup_target=args.speedup_target, n=args.N,
            full=args.full, row_multiple=args.row_multiple, rearrange=args.rearrange, int8=args.int8,
            shapes=shapes_of(args.shape), threads=args.threads, say=print,
        )  # fmt: skip
        print(made)
    if args.json:
        console.answer({**asdict(made), "path": str(made.path), "command": made.command, "files": [str(made.path)]})
