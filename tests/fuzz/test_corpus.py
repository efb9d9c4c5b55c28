"""Every input that once went wrong has its right answer, and goes on having it."""

import os
import subprocess
import sys

import pytest

from tests.fuzz import corpus

ROOT = corpus.FOLDER.parents[2]


@pytest.mark.timeout(120)
def test_what_once_went_wrong_is_right():
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.fuzz.corpus"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"{len(corpus.answers())} tried, all right" in done.stdout


def test_files_and_answers_are_the_same_names():
    files = {path.name for path in corpus.FOLDER.iterdir()} - {"answers.json", corpus.BESIDE}
    assert files == set(corpus.answers())
    assert max((corpus.FOLDER / name).stat().st_size for name in files) <= 8192
