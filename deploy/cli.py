"""kerf-deploy: look into a network (inspect), run a bundle on this machine (run), compare runs (compare)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from deploy import compare, runtime, tables
from deploy.flags import Parser


def main(argv: list[str] | None = None) -> int:
    parser = Parser("kerf-deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="what each layer of a network holds, and will bring")
    look.add_argument("file", type=Path, help=".onnx, .safetensors or a bundle")
    look.add_argument("--bsr", type=int, default=4, help="rows of a block")
    page = commands.add_parser("compare", help="a page of all runs of a folder: accuracy, latency, speedup")
    page.add_argument("folder", type=Path)
    execute = commands.add_parser("run", help="run a bundle: array in (.npy), array out (.npy)")
    execute.add_argument("bundle", type=Path)
    execute.add_argument("input", type=Path)
    execute.add_argument("output", type=Path)
    try:
        args = parser.parse_args(argv)
        {"inspect": show, "run": run, "compare": lambda a: print(compare.write(a.folder))}[args.command](args)
    except (ValueError, OSError) as error:
        print(f"kerf-deploy: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def show(args) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    if (args.file / "manifest.json").is_file():
        console.print(tables.of_bundle(args.file))
        return
    table, notes = tables.of_network(args.file, args.bsr)
    console.print(table)
    for note in notes:
        console.print(note, markup=False)


def run(args) -> None:
    try:
        x = np.load(args.input, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{args.input}: not an .npy array ({error})") from error
    y = runtime.load(args.bundle).run(x)
    with args.output.open("wb") as file:
        np.save(file, y)
    print(f"{args.output}: {y.dtype} {y.shape}")


if __name__ == "__main__":
    raise SystemExit(main())
