"""A tuner that is killed at any moment goes on where it was."""

import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from onnx_networks import mobile

from deploy.record import RecordBook

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing(tmp_path):
    path, records = mobile(tmp_path / "m.onnx"), tmp_path / "records.jsonl"
    command = [
        *(sys.executable, str(ROOT / "model_tune.py"), f"--onnx_path={path}", f"--records={records}"),
        *("--tolerance=0", "--trials=400", "--seconds=0.2", "--against=onnxruntime"),
    ]
    draw, kept, torn = random.Random(0), [], 0
    for _ in range(20):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(2, 6))
        process.kill()
        process.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lines = [r.to_json() for r in RecordBook(records).records]
        torn = max(torn, len(caught))
        assert lines[: len(kept)] == kept  # nothing that was measured is gone
        kept = lines
    assert len(kept) > 50
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"{len({(r.problem, r.what) for r in RecordBook(records).records})}" in out or "0 measured" not in out
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert " 0 measured" in again
