"""What 1xN blocks bring on this machine: zero a network's smallest blocks, compile it, verify, race, report. No torch.

    benchmark --arch mobilenet_v2 --N 4 --sparsity 0.5    one of the image's networks, random weights
    benchmark --onnx_path /models/x.onnx --as_is          your own; without --as_is it is pruned first

Latency depends on shapes and on which blocks are zero, not on what the others hold. Into --out go NAME.onnx, the
bundle NAME.kerf, which holds its report, and copies of the latest report.html and report.json.
"""

import argparse
import os
import sys
from pathlib import Path

import kerf.tune.cli
import kerf.tune.flags
from kerf import files
from kerf.console import Parser
from kerf.deploy.frontend.onnx_graph import read_model
from kerf.deploy.frontend.zero_blocks import zero_blocks
from kerf.deploy.runtime import bundle
from kerf.errors import BadInput

PASSED_ON = ("trials", "tune_minutes", "threads", "seconds", "batch", "against")


def main(argv: list[str] | None = None) -> int:
    """0; 2 with one line on stderr for input that cannot be used; 130 when interrupted."""
    try:
        return run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"benchmark: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser("benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = p.add_mutually_exclusive_group()
    which.add_argument("--arch", default="mobilenet_v2", help="a network of the image (default mobilenet_v2)")
    which.add_argument("--onnx_path", type=Path, help="your own network in its place")
    p.add_argument("--as_is", action="store_true", help="race --onnx_path with the zeros it has, prune nothing")
    p.add_argument("--N", type=int, default=4, help="output kernels of a block (4)")
    p.add_argument("--sparsity", type=float, default=0.5, help="share of every layer's blocks that is zero (0.5)")
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


def run(args: argparse.Namespace) -> int:
    """What can be wrong with the input is found before anything is written. Returns kerf-tune's exit code."""
    if args.N < 1:
        raise BadInput(f"--N {args.N}: a block has at least one kernel; try 4")
    if not 0 <= args.sparsity < 1:
        raise BadInput(f"--sparsity {args.sparsity}: expected a share of blocks, at least 0 and below 1")
    if args.as_is and not args.onnx_path:
        raise BadInput("--as_is: the image's networks have no zeros; give --onnx_path, or leave it out")
    source = args.onnx_path or known(args.arch, args.networks)
    model = read_model(source, args.batch)
    name = source.stem if args.as_is else f"{source.stem}-1x{args.N}-{args.sparsity:g}"
    network, built = source if args.as_is else args.out / f"{name}.onnx", args.out / f"{name}.kerf"
    flags = [f"--onnx_path={network}", f"--bsr={args.N}", f"--sparsity={args.sparsity:g}", f"--out={built}"]
    flags += [f"--records={args.out / 'records.jsonl'}"]
    flags += [f"--{k}={getattr(args, k)}" for k in PASSED_ON if getattr(args, k) is not None]
    kerf.tune.flags.parse(flags, "")
    if not args.as_is:
        zero_blocks(model, args.N, args.sparsity, source)
    refuse_unwritable(args.out)
    bundle.refuse_foreign(built)
    if args.as_is:
        code = kerf.tune.cli.main(flags)
    else:
        code = with_file(network, model.SerializeToString(), lambda: kerf.tune.cli.main(flags))
    if code == 0:
        for page in ("report.json", "report.html"):
            files.write(args.out / page, (built / page).read_bytes())
    return code


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


def with_file(path: Path, content: bytes, work) -> int:
    """work()'s exit code; unless it is 0, ``path`` is afterwards what it was before."""
    before, code = path.read_bytes() if path.exists() else None, None
    files.write(path, content)
    try:
        code = work()
    finally:
        if code != 0:
            path.unlink() if before is None else files.write(path, before)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
