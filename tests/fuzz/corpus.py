"""Small inputs that once went wrong, and the right answer to each: python -m tests.fuzz.corpus tries them all.

answers.json says of each file the command, FILE in its place; the exit code; a part of the one line that is said; and
what was wrong: a kind, of which the file is one.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from tests.fuzz.pool import Case, Outcome, command, outcomes, warm

FOLDER = Path(__file__).parent / "corpus"
BESIDE = "tiny.onnx"  # what commands need as well


class Answer(TypedDict):
    command: list[str]
    exit: int
    says: str
    was: str


def answers() -> dict[str, Answer]:
    return json.loads((FOLDER / "answers.json").read_text())


def cases(root: Path) -> Iterator[Case]:
    """Each in a folder of its own below ``root``. A manifest is given as that of a bundle."""
    for name, answer in answers().items():
        place = root / name
        place.mkdir()
        shutil.copy(FOLDER / BESIDE, place)
        given = place / ("b.kerf/manifest.json" if name.startswith("manifest") else f"given{Path(name).suffix}")
        given.parent.mkdir(exist_ok=True)
        shutil.copy(FOLDER / name, given)
        words = [word.replace("FILE", given.name) for word in answer["command"]]
        yield Case("corpus", name, command(*words), place, (answer["exit"],))


def wrong(o: Outcome, answer: Answer) -> str:
    """What is wrong, or nothing."""
    if o.wrong or o.code != answer["exit"]:
        return f"{o.wrong}, exit code {o.code}; expected {answer['exit']}"
    return "" if answer["says"] in o.err + o.out else f"does not say {answer['says']!r}"


def main() -> int:
    warm()
    right, known = True, answers()
    with tempfile.TemporaryDirectory(prefix="kerf-corpus-") as name:
        for o in outcomes(cases(Path(name)), 1):
            if said := wrong(o, known[o.case.name]):
                right = False
                print(f"{o.case.name}: {said}: {o.err.strip()[-700:] or o.out.strip()[-300:]}")
    print(f"{len(known)} tried, {'all right' if right else 'not all right'}")
    return int(not right)


if __name__ == "__main__":
    raise SystemExit(main())
