"""Sessions under load for long: resident memory while sessions come and go, and while one runs a million times.

Launch:    python scripts/maintain/soak.py [--sessions 100] [--runs 1000000] [--threads 8] [--hours 0]
Hardware:  2 cores; some minutes, and --hours.
Expected:  JSON; it fails where memory grows by more than --most_mib after the first tenth.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sessions", type=int, default=100)
    p.add_argument("--runs", type=int, default=1_000_000)
    p.add_argument("--threads", type=int, default=8)
    p.add_argument(
        "--hours", type=float, default=0, help="of mixed load at the end: sessions, runs and threads at once"
    )
    p.add_argument("--most_mib", type=float, default=8)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        bundle = built(Path(name))
        found = {
            "sessions": loaded(bundle, a.sessions),
            "runs": ran(bundle, a.runs),
            "threads": shared(bundle, a.threads, max(a.runs // 20, 1)),
        }
        if a.hours:
            found["mixed"] = mixed(bundle, a.threads, a.hours)
    print(json.dumps(found, indent=1))
    return int(any(row["grown_mib"] > a.most_mib for row in found.values()))


def built(folder: Path) -> Path:
    """A tiny network's bundle, made by another process: a compiler's memory is not to be counted."""
    import subprocess

    code = (
        "import sys; from pathlib import Path; from tests.fuzz.seeds import tiny; from kerf import cli; "
        "p = tiny(Path(sys.argv[1]) / 'tiny.onnx'); "
        "sys.exit(cli.main(['tune', f'--onnx_path={p}', '--trials=0', '--seconds=0.05', '--engine=kerf', '--quiet']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT, env=environment)
    return folder / "tiny.kerf"


def resident() -> float:
    """MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def figures(samples: list[float], count: int, began: float) -> dict:
    """Of samples at equal distances: the first after a tenth of the work, and the largest from there on."""
    first = samples[max(1, len(samples) // 10)]
    return {
        "count": count, "seconds": round(time.monotonic() - began, 1), "first_mib": round(first, 1),
        "last_mib": round(samples[-1], 1), "grown_mib": round(samples[-1] - first, 2),
    }  # fmt: skip


def loaded(bundle: Path, count: int) -> dict:
    import kerf

    x, began, samples = image(), time.monotonic(), [resident()]
    for _ in range(count):
        session = kerf.load(bundle)
        session.run(x)
        del session
        samples.append(resident())
    return figures(samples, count, began)


def ran(bundle: Path, count: int) -> dict:
    import kerf

    session, x, began = kerf.load(bundle), image(), time.monotonic()
    expected, samples = session.run(x), [resident()]
    for i in range(1, count + 1):
        y = session.run(x)
        if i % max(count // 100, 1) == 0:
            assert np.array_equal(y, expected)
            samples.append(resident())
    return figures(samples, count, began)


def shared(bundle: Path, threads: int, count: int) -> dict:
    """One session, and one for each: every answer is what one thread alone gets."""
    import kerf

    x, began, samples = image(), time.monotonic(), [resident()]
    for sessions in (1, threads) * 5:
        all_of = [kerf.load(bundle) for _ in range(sessions)]
        expected, wrong = all_of[0].run(x), []

        def work(i: int, all_of=all_of, expected=expected, wrong=wrong) -> None:
            for _ in range(count // threads // 10):
                if not np.array_equal(all_of[i % len(all_of)].run(x), expected):
                    wrong.append(i)

        running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert not wrong
        samples.append(resident())
    return figures(samples, count, began)


def mixed(bundle: Path, threads: int, hours: float) -> dict:
    end, began, samples, rounds = time.monotonic() + 3600 * hours, time.monotonic(), [resident()], 0
    while time.monotonic() < end:
        loaded(bundle, 5)
        shared(bundle, threads, 10_000)
        ran(bundle, 10_000)
        samples.append(resident())
        rounds += 1
    return figures(samples, rounds, began)


def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


if __name__ == "__main__":
    raise SystemExit(main())
