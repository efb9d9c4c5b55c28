"""Measuring over TVM's tracker, on loopback, with two devices of which one goes away."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tvm

from kerf.deploy.compiler import targets
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.errors import DeviceLost
from kerf.tune.cli import main
from kerf.tune.remote import Tracker
from kerf.tune.search import search
from tests.helpers.onnx_networks import mobile

pytest.importorskip("tornado")  # of the extra rpc
TARGET = targets.parse("native", 1)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def stop(process: subprocess.Popen) -> None:
    """With the children that TVM's servers work in."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """(tracker, [two server processes]); a test takes one of them away."""
    here, port = "--host=127.0.0.1", free_port()

    def start(module: str, port: int, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"tvm.exec.{module}", here, f"--port={port}", f"--port-end={port + 1}", *flags]
        return subprocess.Popen([*command, "--silent"], cwd=tmp_path_factory.mktemp("device"), start_new_session=True)

    running = [start("rpc_tracker", port)]
    try:
        for _ in range(2):
            running.append(start("rpc_server", free_port(), f"--tracker=127.0.0.1:{port}", "--key=box"))
        tracker = Tracker("127.0.0.1", port, "box")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if tracker.devices() == 2:
                    break
            except DeviceLost:
                pass
            time.sleep(0.2)
        assert tracker.devices() == 2
        yield tracker, running[1:]
    finally:
        for process in running:
            stop(process)


def test_a_device_is_free_again_whatever_still_refers_to_its_session(devices):
    tracker, _ = devices
    kept = []
    for _ in range(3):  # on two devices
        with tracker.session(1) as session:
            kept.append(session)
            array = tvm.runtime.tensor(np.arange(4, dtype=np.float32), tracker.device(session))
            kept.append(array)
            assert array.numpy().sum() == 6


@pytest.mark.slow  # minutes: candidates of all layers are built
def test_a_device_that_dies_is_dropped_and_its_work_done_by_the_other(devices, tmp_path):
    tracker, servers = devices
    network = convert(mobile(tmp_path / "m.onnx"))
    book = RecordBook(tmp_path / "r.jsonl")

    def kill_one() -> None:
        while len(RecordBook(tmp_path / "r.jsonl").records) < 4:
            time.sleep(0.05)
        stop(servers[0])

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = search(network, TARGET, 1, book, trials=20, place=tracker)
    killer.join()
    assert (summary.measured, summary.failed) == (20, 0)
    assert tracker.devices() == 1
    assert {r.versions["cpu"] for r in book.records} == {"rpc:box"}
    assert all(r.latency_us for r in book.records)


def test_a_network_is_tuned_verified_and_timed_on_a_device(devices, tmp_path, capsys):
    tracker, _ = devices
    path = mobile(tmp_path / "m.onnx")
    flags = ["--onnx_path", str(path), "--trials=4", f"--records={tmp_path / 'r.jsonl'}", "--rpc_key=box"]
    assert main([*flags, f"--rpc=127.0.0.1:{tracker.port}"]) == 0
    out = capsys.readouterr().out
    assert "4 measured" in out
    assert "rpc:box" in out
    assert (tmp_path / "m.kerf" / "report.html").is_file()


def test_no_tracker_and_no_device_are_one_line(tmp_path, capsys):
    path = mobile(tmp_path / "m.onnx")
    flags = ["--onnx_path", str(path), "--trials=1", f"--records={tmp_path / 'r.jsonl'}"]
    for more, word in (
        ([f"--rpc=127.0.0.1:{free_port()}", "--rpc_key=box"], "refused"),
        (["--rpc=somewhere", "--rpc_key=box"], "HOST:PORT"),
        (["--rpc=127.0.0.1:1"], "--rpc_key"),
    ):
        assert main([*flags, *more]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert word in line
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
