"""Three hundred spoiled inputs, each in a process of its own: done, or one line. make fuzz has the thousands."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import kinds, kinds_machine, kinds_onnx, mutate, mutate_onnx, pool, seeds, watching

ROOT = Path(__file__).parents[2]
INPUTS = 300


@pytest.mark.timeout(200)
def test_spoiled_inputs_end_in_one_line(tmp_path):
    words = [
        sys.executable,
        "-m",
        "tests.fuzz.campaign",
        "--quick",
        f"--inputs={INPUTS}",
        f"--keep={tmp_path / 'kept'}",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"| all | {INPUTS} | {INPUTS} | 0 |" in done.stdout


def test_an_input_is_made_of_its_number_alone(tmp_path):
    seeds.tiny(tmp_path / "tiny.onnx")
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        case = kinds.quantised(_with_calibration(tmp_path), folder, random.Random(7))
        made.append({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})
        assert case.absent == ("q.onnx",)
    assert made[0] == made[1]
    assert made[0]


def test_a_small_file_system_is_full_for_its_process_alone(tmp_path):
    if not kinds_machine.may_mount():
        pytest.skip("no file system may be mounted here")
    (tmp_path / "small").mkdir()

    def work():
        kinds_machine.small_file_system(tmp_path / "small", 8192, 10, True)
        with contextlib.suppress(OSError):
            (tmp_path / "small" / "large").write_bytes(bytes(10**6))
            return 1
        return 0

    (outcome,) = pool.outcomes([pool.Case("kind", "0", work, tmp_path)], 1)
    assert outcome.code == 0
    assert not list((tmp_path / "small").iterdir())


def _with_calibration(folder):
    import numpy as np

    np.savez(folder / "tiny.npz", input=np.zeros((4, 3, 8, 8), np.float32))
    return folder


@pytest.mark.parametrize(
    ("work", "wrong"),
    [
        (lambda: 0, ""),
        (lambda: _says("kerf run: error: no", 2), ""),
        (lambda: _says("kerf run: error: no\nand more", 2), "not one line"),
        (lambda: _says("kerf run: internal error: no", 70), "internal error"),
        (lambda: _says("Traceback (most recent call last):", 1), "traceback"),
        (lambda: _says("kerf run: error: \x1b[31mno", 2), "escapes"),
        (lambda: os.abort(), "crash"),
        (lambda: bytearray(1 << 40) and 0, "traceback"),
        (lambda: _says(pool.REFUSED, 2), "not one line"),
        (lambda: Path("y.npy").write_text("half") and _says("kerf run: error: no", 2), "half-written"),
        (lambda: print(pool.HALF) or _says("kerf run: error: no", 2), "half-written"),
        (lambda: 3, "exit code"),
    ],
)
def test_the_judge_sees_what_is_wrong(work, wrong, tmp_path):
    case = pool.Case("kind", "0", work, tmp_path, absent=("y.npy",))
    (outcome,) = pool.outcomes([case], 1)
    assert outcome.wrong == wrong


def test_a_piece_of_a_bundle_may_need_more_memory_than_there_is(tmp_path):
    for hungry, wrong in ((True, ""), (False, "memory")):
        case = pool.Case("kind", "0", lambda: _says("kerf run: error: out of memory", 2), tmp_path, hungry=hungry)
        (outcome,) = pool.outcomes([case], 1)
        assert outcome.wrong == wrong


def _says(text, code):
    print(text, file=sys.stderr)
    return code


def _waits_for_a_pipe(folder):
    os.mkfifo(folder / "fifo")
    (folder / "fifo").read_bytes()


def _works_on(_):
    while True:
        pass


def _leaves_it_to_a_child(_):
    if os.fork():
        os.wait()
    _works_on(_)


@pytest.mark.parametrize("work", [_waits_for_a_pipe, _works_on, _leaves_it_to_a_child])
def test_a_hang_is_seen(work, tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "ASLEEP", 1)
    monkeypatch.setattr(watching, "WORKED", 1)
    (outcome,) = pool.outcomes([pool.Case("kind", "0", lambda: work(tmp_path), tmp_path)], 1)
    assert outcome.wrong == "hang"
    assert work.__name__ in outcome.err  # where


def test_what_was_stopped_for_a_while_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "ASLEEP", 0.5)

    def work():
        if not os.fork():
            time.sleep(1.5)  # while its parent is stopped
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    (outcome,) = pool.outcomes([pool.Case("kind", "0", work, tmp_path)], 1)
    assert (outcome.wrong, outcome.code) == ("", 0)


@pytest.mark.parametrize("seed", range(20))
def test_mutators_make_something_of_everything(seed):
    r = random.Random(seed)
    assert isinstance(mutate.spoiled(b"some bytes of a file", r), bytes)
    assert isinstance(mutate.npy(r), bytes)
    json.loads(json.dumps(mutate.spoiled_json({"a": [1, {"b": 2}], "c": "d"}, r)))
    import onnx

    assert isinstance(mutate_onnx.spoiled(onnx.ModelProto(ir_version=8), r), onnx.ModelProto)


def test_a_judge_that_gives_no_answer_is_none(monkeypatch):
    monkeypatch.setattr(kinds_onnx, "JUDGE_SECONDS", 1)
    assert kinds_onnx._in_time(lambda path: path == "a", "a") is True
    assert kinds_onnx._in_time(lambda path: path == "a", "b") is False
    assert kinds_onnx._in_time(lambda path: bool(time.sleep(30)), "a") is None


def test_what_the_judge_logs_is_none_of_the_commands_words(capfd):
    assert kinds_onnx._in_time(lambda path: bool(os.write(1, b"log") + os.write(2, b"log")), "a") is True
    assert capfd.readouterr() == ("", "")
