"""Who calls code for several threads: ones that end leave nothing behind, a child process runs what it was left."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import kerf
from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.runtime import callers
from tests.deploy.runtime.test_bundle import save
from tests.fuzz.seeds import pieces
from tests.helpers.onnx_networks import mobile


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_end_leave_no_workers_behind(tmp_path, threads):
    """TVM's pools outlive the threads that they were made for: a server with a thread for each request had as many."""
    network = convert(mobile(tmp_path / "m.onnx"))
    built = build(network, targets.parse("native", threads), RecordBook())
    code = f"""
import os, threading, numpy as np, kerf
session, x = kerf.load({str(save(tmp_path / "b.kerf", built, network))!r}), np.ones((1, 3, 32, 32), np.float32)
expected, counts, same = session.run(x), [], []
for _ in range(4):
    for _ in range(20):
        thread = threading.Thread(target=lambda: same.append((session.run(x) == expected).all()))
        thread.start()
        thread.join()
    counts.append(len(os.listdir("/proc/self/task")))
assert all(same) and len(same) == 80
assert counts[-1] <= counts[0] + 2, counts
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_child_process_runs_what_its_parent_loaded(tmp_path):
    """As servers do that load before they fork: neither TVM's workers nor ONNX Runtime's are in the child."""
    folder = kerf.compile(
        pieces(tmp_path / "x.onnx"), tmp_path / "x.kerf", trials=0, threads=2, against=(), engine="kerf"
    ).path
    code = f"""
import os, signal, numpy as np, kerf
session = kerf.load({str(folder)!r})
x = {{n: np.ones(t["shape"], t["dtype"]) for n, t in session.inputs.items()}}
expected = session.run(x)
child = os.fork()
if not child:
    signal.alarm(60)
    found = session.run(x)
    os._exit(0 if all(np.array_equal(found[n], expected[n]) for n in expected) else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_thread_that_stays_runs_into_its_caller_gets(monkeypatch):
    def fails():
        assert threading.current_thread().name == "kerf"
        raise KeyError("x")

    monkeypatch.setattr(callers, "MOST", 0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError):
        pool.submit(callers.call, fails, 1).result()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(callers.call, lambda: threading.current_thread().name, 1).result() == "kerf"
