"""A tuner that is killed at any moment goes on where it was."""

import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from kerf.deploy.measure.record import RecordBook
from kerf.tune.records_cli import layers_of
from tests.helpers.onnx_networks import mobile

ROOT = Path(__file__).parents[2]

MOST_BYTES = 20_000  # of records, about 20, that a tuner writes before it is killed
DEADLINE = 120  # seconds in which it must have written them


def grown(file: Path, size: int, process: subprocess.Popen) -> None:
    """Returns when ``file`` has ``size`` bytes, or the process has nothing left to do."""
    end = time.monotonic() + DEADLINE
    while process.poll() is None and (not file.exists() or file.stat().st_size < size):
        assert time.monotonic() < end, f"{file} has not grown to {size} bytes in {DEADLINE} s"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing(tmp_path):
    path = mobile(tmp_path / "m.onnx")

    def command(records: Path) -> list[str]:
        flags = [f"--onnx_path={path}", f"--records={records}", "--seconds=0.2", "--against=onnxruntime"]
        return [sys.executable, str(ROOT / "model_tune.py"), *flags, "--trials=10000", "--tolerance=0"]

    draw, kept, records = random.Random(0), [], tmp_path / "killed.jsonl"
    for _ in range(20):
        size = records.stat().st_size if records.exists() else 0
        process = subprocess.Popen(command(records), cwd=tmp_path, stdout=subprocess.DEVNULL)
        grown(records, size + draw.randrange(1, MOST_BYTES), process)
        process.kill()
        process.wait()
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            lines = [r.to_json() for r in RecordBook(records).records]
        assert lines[: len(kept)] == kept  # nothing that was measured is gone
        kept = lines
    assert len(kept) > 50
    whole = tmp_path / "whole.jsonl"
    for file in (records, whole):
        subprocess.run(command(file), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    again = subprocess.run(command(records), cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert " 0 measured" in again
    books = [RecordBook(file) for file in (records, whole)]
    tried = [{(r.problem, r.what) for r in book.records} for book in books]
    print(f"{len(kept)} records survived 20 kills; {len(tried[0])} configurations, uninterrupted {len(tried[1])}")
    best = [{r.problem for r in layers_of(book) if book.best(*r.key[:2], r.versions)} for book in books]
    assert best[0] == best[1]
