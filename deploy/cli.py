"""kerf-deploy: look into a network (inspect), make it one of integers (quantise), run a bundle here (run), compare runs
(compare), write the library that runs bundles without Python (export-runtime).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kerf import console, files, gate
from kerf.console import Parser
from kerf.deploy.quantise import calibration
from kerf.errors import BadInput


def main(argv: list[str] | None = None, program: str = "kerf-deploy") -> int:
    """The command's exit code; ``program`` is what it is called in its lines."""
    return console.guarded(program, lambda: work(argv, program))


def work(argv: list[str] | None, program: str) -> None:
    args = build_parser(program).parse_args(argv)
    quiet = args.quiet and args.command != "inspect"  # a table is what was asked for
    console.carry_out(lambda: COMMANDS[args.command](args), quiet, args.json)


def build_parser(program: str) -> Parser:
    parser = Parser(program, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="what each layer of a network holds, and will bring")
    look.add_argument("file", type=Path, help=".onnx, .safetensors or a bundle")
    look.add_argument("--bsr", type=int, default=4, help="rows of a block")
    look.add_argument(
        "--shape", action="append", default=[], metavar="NAME=SIZES", help="sizes of an input, 1x3x640x640"
    )
    look.add_argument("--layer", help="the block pattern of this layer alone, as a picture")
    look.add_argument("--picture", type=Path, metavar="SVG", help="where to (with --layer; default LAYER.svg)")
    page = commands.add_parser("compare", help="a page of all runs of a folder: accuracy, latency, speedup")
    page.add_argument("folder", type=Path)
    execute = commands.add_parser(
        "run", help="run a bundle: array in (.npy, or .npz of several by name), array out (.npy or .npz)"
    )
    execute.add_argument("bundle", type=Path)
    execute.add_argument("input", type=Path)
    execute.add_argument("output", type=Path)
    integers = commands.add_parser("quantise", help="an f32 network as one of 8-bit integers, .onnx with Q/DQ")
    integers.add_argument("file", type=Path, help=".onnx of f32")
    integers.add_argument("--out", type=Path, help="the file to write; by default <name>.int8.onnx beside the other")
    integers.add_argument(
        "--shape", action="append", default=[], metavar="NAME=SIZES", help="sizes of an input that the file leaves open"
    )
    calibration.add_flags(integers, required=True)
    library = commands.add_parser("export-runtime", help="libkerf, which runs bundles in C and C++, without Python")
    library.add_argument("folder", type=Path)
    library.add_argument("--cc", default="", help="C compiler; by default $CC, else cc, gcc or clang")
    for command in (look, page, execute, integers, library):
        console.add_flags(command)
    return parser


def look_into(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.frontend.sizes import shapes_of
    from kerf.deploy.report import tables
    from kerf.deploy.report.inspect import inspect
    from kerf.deploy.runtime import bundle

    if args.picture and not args.layer:
        raise BadInput("--picture is of one layer: give --layer NAME")
    if (args.file / "manifest.json").exists():
        if args.layer:
            raise BadInput(f"--layer: {args.file} holds packed weights; give the .onnx file or the checkpoint")
        manifest = bundle.read_manifest(args.file)
        if not args.json:
            screen().print(tables.of_bundle(args.file.name, manifest))
        same = {key: manifest[key] for key in ("model", "target", "threads", "layers")}
        return {"file": str(args.file), **same}
    if args.layer:
        return draw(args)
    found = inspect(args.file, args.bsr, shapes_of(args.shape))
    if not args.json:
        table = screen()
        table.print(tables.of_network(found))
        for note in found.notes:
            table.print(note, markup=False)
    return found.to_json()


def screen() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140)


def draw(args: argparse.Namespace) -> dict[str, Any]:
    """Writes every block of a layer as a picture."""
    from kerf.deploy.report import block_pattern, figures

    found = block_pattern.pattern(args.file, args.layer, args.bsr, limit=sys.maxsize)
    path = args.picture or Path(args.layer.replace("/", ".").strip(".") + ".svg")  # names may hold slashes
    files.write(path, figures.alone(figures.blocks(found["rows"], f"Kept blocks of {args.layer}")))
    if not args.quiet:
        height, width = found["blocks"]
        print(f"{path}: {height}x{width} blocks of {args.bsr} output kernels, {found['kept']:.0%} kept")
    return {key: value for key, value in found.items() if key != "rows"} | {"files": [str(path)]}


def put_side_by_side(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.report import compare

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


def run(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.runtime.session import load

    given: Any = gate.read_arrays(args.input)
    session = load(args.bundle)
    if len(session.outputs) > 1 and args.output.suffix != ".npz":
        names = ", ".join(session.outputs)
        raise BadInput(f"{args.output}: this bundle has {len(session.outputs)} outputs ({names}); give a name in .npz")
    y = session.run(given)
    found = y if isinstance(y, dict) else {next(iter(session.outputs)): y}
    with files.replacing(args.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **found) if args.output.suffix == ".npz" else np.save(file, y)
    rows = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in found.items()}
    for name, array in found.items():
        print(f"{args.output}: {f'{name} ' if len(found) > 1 else ''}{array.dtype} {array.shape}")
    first = next(iter(rows.values()))
    return {**first, "outputs": rows, "files": [str(args.output)]}


def make_integer(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.frontend.sizes import shapes_of
    from kerf.deploy.quantise.quantise import quantise

    out = args.out or args.file.with_suffix(".int8.onnx")
    made = quantise(args.file, out, calibration.of(args), shapes=shapes_of(args.shape))
    print(made)
    return {"samples": made.samples, "layers": made.layers, "method": made.method, "files": [str(made.path)]}


def export_runtime(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.embed import c_library

    made = c_library.export(args.folder, args.cc)
    print(made)
    return {"compiler": made.compiler, "bytes": made.bytes, "files": [str(made.folder), str(made.library)]}


# What a command needs is loaded when it is asked for: a device that runs a bundle has no need of onnx.
COMMANDS = {
    **{"inspect": look_into, "quantise": make_integer, "run": run, "compare": put_side_by_side},
    "export-runtime": export_runtime,
}

if __name__ == "__main__":
    raise SystemExit(main())
