"""kerf-prune, and `python imagenet.py`: flags in; a pruned network, its ONNX file and its numbers in --job_dir out."""

import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kerf import console, failures
from kerf.compress.command import show
from kerf.compress.command.allocating import sensitivities_of
from kerf.compress.command.args import Args
from kerf.compress.command.folder import last, written
from kerf.compress.command.job import check_alike, prepare
from kerf.compress.command.parsing import continued, parse
from kerf.compress.command.running import evaluate_only, prune_and_train
from kerf.compress.training import distributed
from kerf.compress.training.progress import Reporter

SENSITIVITY = "sensitivity"
NAMELESS = ("kerf-prune", "imagenet.py")  # their errors have always begun with "error:"


def main(argv: Sequence[str] | None = None, program: str = "kerf-prune") -> int:
    """0, or with one line on stderr 2 for input that cannot be used, 70 for an internal error, 130 when interrupted.

    The first of `argv` may be a command of its own, show, methods or sensitivity, or an .onnx file that is to be
    pruned. `program` is what usage and errors call it all.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith(".onnx"):
        from kerf.compress.onnx_file.cli import main as prune_file  # loads onnx and ONNX Runtime

        return prune_file(argv, program)
    word = argv[0] if argv and argv[0] in (*show.COMMANDS, SENSITIVITY) else ""
    name = f"{program} {word}" if word and not program.endswith(f" {word}") else program
    said = "" if program in NAMELESS else f"{name}: "
    job_dir: Path | None = None
    with console.terminal(name):
        try:
            if word in show.COMMANDS:
                show.run(argv, name)
                console.flush()
                return 0
            if not {"-h", "--help"} & {*argv}:
                distributed.start()
            args, notes = distributed.on_first(lambda: continued(*parse(argv[1:] if word else argv, name)))
            job_dir = args.job_dir
            work(args, notes, word)
            console.flush()
            distributed.stop()
            return 0
        except SystemExit as error:  # of --help, or rich's for a closed pipe
            return console.failed(error, said)
        except BaseException as error:
            return distributed.leave(_said(error, said, argv, job_dir))


def _said(error: BaseException, said: str, argv: Sequence[str], job_dir: Path | None) -> int:
    """The exit code. Of several processes that fail one says why."""
    if not distributed.is_first_to_fail():
        return failures.code(error)
    if "--debug" in argv:
        traceback.print_exc()
    hint = f"; continue with --resume {job_dir}" if job_dir and last(job_dir).is_file() else ""
    return console.failed(error, said, f"interrupted{hint}")


def work(args: Args, notes: Sequence[str], word: str) -> None:
    """The run, in words, or with --json as one object at the end."""
    costs = None
    with console.speaking(args.quiet, args.json):
        reporter = Reporter(quiet=not distributed.first())
        for note in notes:
            reporter.say(note)
        job = distributed.together(partial(prepare, args))
        for note in job.notes:
            reporter.say(note)
        check_alike(job)
        if word == SENSITIVITY:
            costs = sensitivities_of(job, reporter)
            values = costs.to_json()
        else:
            values = {**(evaluate_only if args.pruned_model else prune_and_train)(job, reporter)}
    if args.json:
        distributed.on_first(lambda: console.answer({**values, "files": written(args.job_dir)}))
    elif costs:
        distributed.on_first(partial(show.sensitivities, costs))
