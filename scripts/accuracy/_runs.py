"""One run of a comparison: begun, continued or left alone, whichever it needs. Not a script itself."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from kerf.compress import cli
from kerf.compress.command.parsing import parse


def finish(folder: Path, flags: list[str], start: Callable[[list[str]], int] | None = None) -> int:
    """An exit code. A finished run is not repeated, a stopped one continues; `start` is for one that cannot."""
    config = folder / "config.json"
    flags = [*flags, f"--job_dir={folder}"]
    if config.is_file() and json.loads(config.read_text()) != parse(flags)[0].as_json():
        print(f"error: {folder} holds a run with other settings; give another --job_dir", file=sys.stderr)
        return 2
    if (folder / "summary.json").is_file():
        return 0
    if start:
        return start(flags)
    stopped = (folder / "checkpoint" / "last.safetensors").is_file()
    return cli.main([f"--resume={folder}"] if stopped else flags)
