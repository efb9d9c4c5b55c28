"""A JSON object of flags: --config FILE, and the config.json that every run leaves in its folder."""

import difflib
import json
from pathlib import Path
from typing import Any

from kerf import gate
from kerf.compress.command.args import FLAGS
from kerf.compress.command.flags import Flag
from kerf.errors import BadInput

# The 1xN authors' parser has these too and never reads them, or they name the one thing there is.
IGNORED = ("--bn_type", "--first-layer-type", "--init", "--mode", "--nonlinearity", "--random_rule")
_SPELLED: dict[str, Flag] = {s.strip("-"): row for row in FLAGS.values() for s in row.spellings}


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The values by name, each checked as if it had been typed, and which of the flags that change nothing are there.

    Raises FileNotFoundError, or BadInput naming the file and what in it is wrong.
    """
    expected = "flag names and values, such as the config.json of a run"
    content = gate.read_json(path, dict[str, Any], expected, with_nan=True)
    values: dict[str, Any] = {}
    ignored = []
    for name, value in content.items():
        if f"--{name}" in IGNORED:
            ignored.append(f"--{name}")
        elif name not in _SPELLED:
            close = difflib.get_close_matches(name, _SPELLED, 1)
            hint = f"did you mean {close[0]}?" if close else "see --help for those that there are"
            raise BadInput(f"{path}: no flag is called {name!r}; {hint}")
        elif value is not None and value != []:  # both as if left out
            values[_SPELLED[name].name] = _value(path, _SPELLED[name], name, value)
    return values, ignored


def _value(path: Path, row: Flag, name: str, value: Any) -> Any:
    try:
        if row.many:
            return tuple(_one(row, each) for each in (value if isinstance(value, list) else [value]))
        return _one(row, value)
    except ValueError:
        raise BadInput(f"{path}: {name} is {json.dumps(value)}, expected {row.expected}") from None


def _one(row: Flag, value: Any) -> Any:
    """Numbers may be texts, as they are when typed. Raises ValueError for what is none of the flag's."""
    if isinstance(value, bool) != (row.kind is bool) or isinstance(value, list | dict | None):
        raise ValueError
    made = row.kind(value if row.kind is bool else str(value))
    if row.choices and made not in row.choices:
        raise ValueError
    return made
