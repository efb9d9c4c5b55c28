"""--job_dir: what a run finds, writes and leaves there."""

import shutil
import tempfile
from pathlib import Path

from kerf import files
from kerf.compress.command.args import Args
from kerf.compress.training.progress import Reporter
from kerf.errors import BadInput

WRITTEN = (
    *("config.json", "metrics.jsonl", "summary.json", "predictions.json", "model.onnx", "checkpoint"),
    *("allocation.json", "sensitivity*.json", "sensitivity*.svg", "prices*.json", "tensorboard"),
)


def config_of(folder: Path) -> Path:
    return folder / "config.json"


def last(folder: Path) -> Path:
    """The run after its last finished epoch."""
    return folder / "checkpoint" / "last.safetensors"


def best(folder: Path) -> Path:
    """The network that the run ended with."""
    return folder / "checkpoint" / "best.safetensors"


def check_writable(args: Args) -> None:
    """Raises BadInput where a run could not write all that it will, the first of it hours from now."""
    try:
        _try(next(place for place in (args.job_dir, *args.job_dir.absolute().parents) if place.exists()))
        for name, needed in (("checkpoint", True), ("tensorboard", args.tensorboard)):
            place = args.job_dir / name
            if place.is_dir() or (place.exists() and args.resume and needed):  # a new run replaces a file
                _try(place)
    except OSError as error:
        raise BadInput(f"--job_dir {args.job_dir}: {error}; give another folder") from None


def _try(place: Path) -> None:
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, expected a folder")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise PermissionError(f"nothing can be written in {place} ({error.strerror})") from None


def open_job_dir(args: Args, reporter: Reporter) -> Path:
    """Creates --job_dir; a new run replaces what an earlier one wrote there, and nothing else."""
    folder = args.job_dir
    folder.mkdir(parents=True, exist_ok=True)
    old = [path for name in WRITTEN for path in folder.glob(name)]
    if old and not args.resume:
        reporter.say(f"replacing the run in {folder}")
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not args.resume:
        files.write_json(config_of(folder), args.as_json())
    reporter.say("  ".join(f"{k}={v}" for k, v in args.as_json().items()))
    return folder


def written(folder: Path) -> list[str]:
    """What a run has left in its folder."""
    return [str(path) for name in WRITTEN for path in sorted(folder.glob(name))]
