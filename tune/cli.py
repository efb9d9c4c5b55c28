"""kerf-tune (model_tune.py): .onnx -> convert -> search -> build -> verify -> race -> bundle with its report."""

from __future__ import annotations

import shlex
import sys
import warnings

from rich.console import Console

from kerf import console
from kerf.deploy.report import report
from kerf.tune import records_cli
from kerf.tune.answer import answer
from kerf.tune.flags import parse
from kerf.tune.pipeline import Bundle, carry_out
from kerf.tune.progress import Progress
from kerf.tune.request import Request

INTERRUPTED = "interrupted; measurements so far are kept, the same command goes on"


def main(argv: list[str] | None = None, program: str = "kerf-tune") -> int:
    """The command's exit code; ``program`` is what it is called in its lines."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in records_cli.COMMANDS:
        return records_cli.main(words, program)
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {message}\n"
    return console.guarded(program, lambda: run(words, program), INTERRUPTED)


def run(words: list[str], program: str) -> None:
    flags = parse(words, __doc__, program)
    with console.speaking(flags.quiet, flags.json):
        bundle = carry_out(flags.request, command(flags.request, words), print, Progress(print, terminal()))
        print(summary(bundle))
    if flags.json:
        console.answer(answer(bundle, flags.request))


def terminal() -> Console:
    return Console(file=sys.stdout, soft_wrap=True, highlight=False)


def summary(bundle: Bundle) -> str:
    """The last lines: what came out, and where it lies."""
    if bundle.report is None:
        return f"bundle: {bundle.path}, not verified: this machine cannot run it"
    return f"{report.table(bundle.report)}\nbundle: {bundle.path}\nreport: {bundle.path / 'report.html'}"


def command(request: Request, words: list[str]) -> str:
    """What was typed, and which file was found where none was named."""
    named = any(word.startswith("--onnx") for word in words)
    return shlex.join(["python", "model_tune.py", *words, *([] if named else [f"--onnx_path={request.path}"])])


if __name__ == "__main__":
    raise SystemExit(main())
