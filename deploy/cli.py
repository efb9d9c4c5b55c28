"""kerf-deploy: look into a network (inspect), run a bundle on this machine (run)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from deploy import inspect, runtime
from deploy.flags import Parser


def main(argv: list[str] | None = None) -> int:
    parser = Parser("kerf-deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="element and block density of every layer of an .onnx file")
    look.add_argument("file", type=Path)
    look.add_argument("--bsr", type=int, default=4, help="rows of a block")
    execute = commands.add_parser("run", help="run a bundle: array in (.npy), array out (.npy)")
    execute.add_argument("bundle", type=Path)
    execute.add_argument("input", type=Path)
    execute.add_argument("output", type=Path)
    try:
        args = parser.parse_args(argv)
        show(args) if args.command == "inspect" else run(args)
    except (ValueError, OSError) as error:
        print(f"kerf-deploy: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def show(args) -> None:
    table = Table(title=f"{args.file.name}: zero {args.bsr}x1 blocks")
    for name in ("layer", "op", "shape", "zero elements", "zero blocks"):
        table.add_column(name, justify="left" if name in ("layer", "op") else "right")
    for layer in inspect.densities(args.file, args.bsr):
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, layer.op, shape, f"{1 - layer.element:.1%}", f"{1 - layer.block:.1%}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


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
