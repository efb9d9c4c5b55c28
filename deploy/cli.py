"""kerf-deploy: look into a network (inspect), run a bundle on this machine (run), compare runs (compare)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from kerf import console as output
from kerf import files
from kerf.console import Parser
from kerf.deploy.report import compare, figures, inspect, tables
from kerf.deploy.runtime import session
from kerf.errors import BadInput


def main(argv: list[str] | None = None) -> int:
    parser = Parser("kerf-deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="what each layer of a network holds, and will bring")
    look.add_argument("file", type=Path, help=".onnx, .safetensors or a bundle")
    look.add_argument("--bsr", type=int, default=4, help="rows of a block")
    look.add_argument("--layer", help="the block pattern of this layer alone, as a picture")
    look.add_argument("--picture", type=Path, metavar="SVG", help="where to (with --layer; default LAYER.svg)")
    page = commands.add_parser("compare", help="a page of all runs of a folder: accuracy, latency, speedup")
    page.add_argument("folder", type=Path)
    execute = commands.add_parser("run", help="run a bundle: array in (.npy), array out (.npy)")
    execute.add_argument("bundle", type=Path)
    execute.add_argument("input", type=Path)
    execute.add_argument("output", type=Path)
    for command in (look, page, execute):
        output.add_flags(command)
    try:
        args = parser.parse_args(argv)
        with output.speaking(args.quiet and args.command != "inspect", args.json):  # a table is what was asked for
            found = COMMANDS[args.command](args)
        if args.json:
            output.answer(found)
    except (ValueError, OSError) as error:
        print(f"kerf-deploy: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kerf-deploy: interrupted", file=sys.stderr)
        return 130
    return 0


def show(args: argparse.Namespace) -> dict:
    if args.picture and not args.layer:
        raise BadInput("--picture is of one layer: give --layer NAME")
    is_bundle = (args.file / "manifest.json").is_file()
    if args.layer:
        if is_bundle:
            raise BadInput(f"--layer: {args.file} holds packed weights; give the .onnx file or the checkpoint")
        return draw(args)
    found = tables.of_bundle(args.file) if is_bundle else tables.of_network(args.file, args.bsr)
    if not args.json:
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(tables.bundle_table(found) if is_bundle else tables.network_table(found))
        for note in found.get("notes", ()):
            console.print(note, markup=False)
    return found


def draw(args: argparse.Namespace) -> dict:
    """Writes every block of a layer as a picture."""
    found = inspect.pattern(args.file, args.layer, args.bsr, limit=sys.maxsize)
    path = args.picture or Path(args.layer.replace("/", ".").strip(".") + ".svg")  # names may hold slashes
    files.write(path, figures.alone(figures.blocks(found["rows"], f"Kept blocks of {args.layer}")))
    if not args.quiet:
        height, width = found["blocks"]
        print(f"{path}: {height}x{width} blocks of {args.bsr} output kernels, {found['kept']:.0%} kept")
    return {key: value for key, value in found.items() if key != "rows"} | {"files": [str(path)]}


def put_side_by_side(args: argparse.Namespace) -> dict:
    path = compare.write(args.folder)
    print(path)
    runs = compare.runs(args.folder)
    best = compare.unbeaten(runs)
    rows = [
        {
            **{key: run.summary.get(key) for key in ("data_set", "method", "top1", "top1_dense", "macs", "macs_dense")},
            "name": run.name,
            "ms": run.latency_ms,
            "speedup": run.report.get("speedup") if run.report else None,
            "not_beaten": run.name in best,
            "notes": run.notes,
        }
        for run in runs
    ]
    return {"runs": rows, "files": [str(path)]}


def run(args: argparse.Namespace) -> dict:
    try:
        x = np.load(args.input, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{args.input}: not an .npy array ({error})") from error
    y = session.load(args.bundle).run(x)
    with args.output.open("wb") as file:
        np.save(file, y)
    print(f"{args.output}: {y.dtype} {y.shape}")
    return {"dtype": str(y.dtype), "shape": list(y.shape), "files": [str(args.output)]}


COMMANDS = {"inspect": show, "run": run, "compare": put_side_by_side}

if __name__ == "__main__":
    raise SystemExit(main())
