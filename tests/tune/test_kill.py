"""A tuner that is killed at any moment goes on where it was."""

import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from kerf.deploy.measure.record import RecordBook
from tests.helpers.onnx_networks import mobile

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing(tmp_path):
    path = mobile(tmp_path / "m.onnx")

    def command(records: Path) -> list[str]:
        flags = [f"--onnx_path={path}", f"--records={records}", "--seconds=0.2", "--against=onnxruntime"]
        return [sys.executable, str(ROOT / "model_tune.py"), *flags, "--trials=10000", "--tolerance=0"]

    draw, kept, records = random.Random(0), [], tmp_path / "killed.jsonl"
    for _ in range(20):
        process = subprocess.Popen(command(records), cwd=tmp_path, stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(5, 15))
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
    us = [sum(book.best(*key[:2], dict(key[2])).us for key in {r.key for r in book.records}) for book in books]
    print(f"best of every layer together: {us[0]:.1f} us, uninterrupted {us[1]:.1f} us")
    assert us[0] == pytest.approx(us[1], rel=0.15)
