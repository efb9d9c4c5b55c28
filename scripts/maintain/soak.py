"""Sessions under load for long: resident memory while sessions come and go, and while one runs a million times.

Launch:    python scripts/maintain/soak.py [--sessions 100] [--runs 1000000] [--threads 8] [--hours 0]
Hardware:  2 cores; some minutes, and --hours.
Expected:  JSON; it fails where memory grows by more than --most_mib after the first tenth, or threads stay.
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kerf.deploy.runtime.session import Session

ROOT = Path(__file__).resolve().parents[2]
MOST_THREADS = 40  # pools of the first threads that call (deploy/runtime/callers.py)


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
        folder = Path(name)
        bundle, pieces = built(folder, "tiny"), built(folder, "pieces")
        found = {
            "sessions": loaded(bundle, a.sessions),
            "runs": ran(bundle, a.runs),
            "threads": shared(bundle, a.threads, max(a.runs // 20, 1)),
        }
        if a.hours:
            found["mixed"] = mixed((bundle, pieces), a.threads, a.hours)
    print(json.dumps(found, indent=1))
    return int(any(row["grown_mib"] > a.most_mib or row["grown_threads"] > MOST_THREADS for row in found.values()))


def built(folder: Path, name: str) -> Path:
    """The bundle of a network of tests/fuzz/seeds.py, made by another process: a compiler's memory is not to be
    counted. "tiny" is kerf's alone; of "pieces", which has two inputs and two outputs, ONNX Runtime runs some.
    """
    import subprocess

    code = (
        "import sys; from pathlib import Path; from tests.fuzz import seeds; from kerf import cli; "
        "p = getattr(seeds, sys.argv[2])(Path(sys.argv[1]) / f'{sys.argv[2]}.onnx'); "
        "sys.exit(cli.main(['tune', f'--onnx_path={p}', '--trials=0', '--seconds=0.05', '--engine=kerf', '--quiet']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(folder), name], check=True, cwd=ROOT, env=environment)
    return folder / f"{name}.kerf"


def resident() -> float:
    """MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def sample() -> tuple[float, int]:
    """MiB, and threads of this process."""
    return resident(), len(os.listdir("/proc/self/task"))


def figures(samples: list[tuple[float, int]], count: int, began: float) -> dict:
    """Of samples at equal distances: the first after a tenth of the work, and the last."""
    (first, threads), (last, more) = samples[max(1, len(samples) // 10)], samples[-1]
    return {
        "count": count, "seconds": round(time.monotonic() - began, 1), "first_mib": round(first, 1),
        "last_mib": round(last, 1), "grown_mib": round(last - first, 2), "threads": more,
        "grown_threads": more - threads,
    }  # fmt: skip


def loaded(bundle: Path, count: int) -> dict:
    import kerf

    began, samples = time.monotonic(), [sample()]
    for _ in range(count):
        session = kerf.load(bundle)
        session.run(given(session))
        del session
        samples.append(sample())
    return figures(samples, count, began)


def ran(bundle: Path, count: int) -> dict:
    import kerf

    session, began = kerf.load(bundle), time.monotonic()
    x = given(session)
    expected, samples = session.run(x), [sample()]
    for i in range(1, count + 1):
        y = session.run(x)
        if i % max(count // 100, 1) == 0:
            assert same(y, expected)
            samples.append(sample())
    return figures(samples, count, began)


def shared(bundle: Path, threads: int, count: int) -> dict:
    """One session, and one for each: every answer is what one thread alone gets."""
    import kerf

    began, samples = time.monotonic(), [sample()]
    for sessions in (1, threads) * 5:
        all_of = [kerf.load(bundle) for _ in range(sessions)]
        x = given(all_of[0])
        expected, wrong = all_of[0].run(x), []

        def work(i: int, all_of=all_of, x=x, expected=expected, wrong=wrong) -> None:
            for _ in range(count // threads // 10):
                if not same(all_of[i % len(all_of)].run(x), expected):
                    wrong.append(i)

        running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert not wrong
        samples.append(sample())
    return figures(samples, count, began)


def mixed(bundles: Sequence[Path], threads: int, hours: float) -> dict:
    """One round after the other; a figure every hundredth of the time."""
    end, began, samples, rounds = time.monotonic() + 3600 * hours, time.monotonic(), [sample()], 0
    while (now := time.monotonic()) < end:
        for bundle in bundles:
            loaded(bundle, 5)
            shared(bundle, threads, 10_000)
            ran(bundle, 10_000)
        rounds += 1
        if now - began >= len(samples) * 36 * hours:
            samples.append(sample())
    samples.append(sample())
    return figures(samples, rounds, began)


def given(session: Session) -> np.ndarray | dict[str, np.ndarray]:
    """Numbers for a session's inputs, by name where there are several."""
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal(row["shape"]).astype(row["dtype"]) for name, row in session.inputs.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def same(y: Any, z: Any) -> bool:
    """Of an array, or of arrays by name, to the last bit."""
    return all(np.array_equal(y[name], z[name]) for name in z) if isinstance(z, dict) else np.array_equal(y, z)


if __name__ == "__main__":
    raise SystemExit(main())
