"""kerf: one command for both stages. Each word is a command of its own, with its own --help."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

import kerf
from kerf import console
from kerf.errors import BadInput

# word: (module whose main(argv, program) does the work, words in front of the rest, what it is for)
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "prune": ("kerf.compress.cli", (), "train a network, prune it, fine-tune it, export it"),
    "sensitivity": ("kerf.compress.cli", ("sensitivity",), "what pruning costs, layer by layer"),
    "methods": ("kerf.compress.cli", ("methods",), "the table of pruning methods, or all of one"),
    "show": ("kerf.compress.cli", ("show",), "what a checkpoint holds"),
    "quantise": ("kerf.deploy.cli", ("quantise",), "an .onnx file of f32 to one of 8-bit integers"),
    "tune": ("kerf.tune.cli", (), "an .onnx file to a tuned, verified, raced bundle"),
    "compile": ("kerf.tune.cli", (), "the same as tune"),
    "inspect": ("kerf.deploy.cli", ("inspect",), "what each layer of a file or a bundle holds, and will bring"),
    "compare": ("kerf.deploy.cli", ("compare",), "all runs of a folder on one page"),
    "run": ("kerf.deploy.cli", ("run",), "a bundle on an array: .npy in, .npy out"),
    "export-runtime": ("kerf.deploy.cli", ("export-runtime",), "libkerf, which runs bundles in C and C++"),
    "bundle": ("kerf.deploy.bundle_cli", (), "sign a bundle, verify a signature"),
    "records": ("kerf.tune.records_cli", (), "measurements: show, export, import"),
}
USAGE = "usage: kerf COMMAND [FLAG ...]\n\n{}\n\nkerf COMMAND --help says more of one; kerf --version."


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 with one line on stderr for what a person can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    return console.ended("kerf", lambda: _main(words))


def _main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format("\n".join(f"  {name:{width}}  {what}" for name, (_, _, what) in COMMANDS.items())))
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"kerf {kerf.__version__}")
        return 0
    return command(*words)


def command(name: str, *rest: str) -> int:
    """Its exit code. Raises BadInput for a word that is none, ImportError where its stage is not installed."""
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(COMMANDS)}"
        raise BadInput(f"no command {name!r}{hint}")
    module, first, _ = COMMANDS[name]
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        if error.name in ("torch", "torchvision", "safetensors"):
            raise ImportError(f"kerf {name} needs {error.name}: pip install 'kerf[train]'") from error
        raise
    return main([*first, *rest], program=f"kerf {name}")


def enter(module: str, program: str) -> int:
    """A command by another name: its module is loaded within the boundary that turns whatever happens into a line."""
    code: list[int] = []
    failed = console.guarded(program, lambda: code.append(import_module(module).main(program=program)))
    return failed or code[0]


def prune() -> int:
    return enter("kerf.compress.cli", "kerf-prune")


def deploy() -> int:
    return enter("kerf.deploy.cli", "kerf-deploy")


def tune() -> int:
    return enter("kerf.tune.cli", "kerf-tune")


if __name__ == "__main__":
    raise SystemExit(main())
