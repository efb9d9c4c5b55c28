"""kerf-prune, and `python imagenet.py`: flags in; a pruned network, its ONNX file and its numbers in --job_dir out."""

import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kerf import console
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
    """0, or 2 with one line on stderr for input that cannot be used, or 130 when interrupted.

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
    try:
        if word in show.COMMANDS:
            show.run(argv, name)
            return 0
        if not {"-h", "--help"} & {*argv}:
            distributed.start()
        args, notes = distributed.on_first(lambda: continued(*parse(argv[1:] if word else argv, name)))
        job_dir = args.job_dir
        work(args, notes, word)
        distributed.stop()
        return 0
    except distributed.INPUT_ERRORS as error:
        if distributed.is_first_to_fail():
            if "--debug" in argv:
                traceback.print_exc()
            print(f"{said}error: {console.one_line(error)}", file=sys.stderr)
        return distributed.leave(2)
    except KeyboardInterrupt:
        if distributed.is_first_to_fail():
            hint = f"; continue with --resume {job_dir}" if job_dir and last(job_dir).is_file() else ""
            print(f"{said}interrupted{hint}", file=sys.stderr)
        return distributed.leave(130)


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
