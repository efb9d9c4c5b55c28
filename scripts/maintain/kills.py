"""kill -9 at random moments: what was lost, which processes live on, what is left in the temporary folder.

Launch:    python scripts/maintain/kills.py tuning --kills 100
           python scripts/maintain/kills.py training --kills 100
Hardware:  2 cores; about ten seconds a kill.
Expected:  JSON with lost, different, orphans 0 and nothing left in the temporary folder: a tuner keeps every record,
           and a training run ends with the losses of one that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "KERF_KILLS"
NETWORK = (
    "import sys; from pathlib import Path; from tests.helpers.onnx_networks import mobile; mobile(Path(sys.argv[1]))"
)
PATIENCE = 5.0  # seconds in which orphans have to be gone
TRAINING = ["--data_set=synthetic", "--arch=resnet20", "--subset=64", "--train_batch_size=8", "--device=cpu"]
TRAINING += ["--method=l1", "--pr_target=0.5", "--num_epochs=6", "--finetune_epochs=6", "--workers=0"]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("tuning", "training"))
    p.add_argument("--kills", type=int, default=100)
    p.add_argument("--minutes", type=float, default=1e9, help="or for so long, if that is less")
    p.add_argument("--most_seconds", type=float, default=12, help="the latest moment, after the start")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        found = {"tuning": tuning, "training": training}[a.what](a, folder)
    print(json.dumps(found, indent=1))
    return int(any(found[key] for key in ("lost", "orphans", "left_in_tmpdir", "different")))


class Killed:
    """Runs of a command, killed; counts of what outlived them."""

    def __init__(self, folder: Path, a: argparse.Namespace):
        self.folder, self.mark, self.random, self.most = folder, uuid.uuid4().hex, random.Random(a.seed), a.most_seconds
        self.env = {**os.environ, MARK: self.mark, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)}
        self.orphans, self.kills, self.most_kills = 0, 0, a.kills
        self.end = time.monotonic() + 60 * a.minutes

    @property
    def done(self) -> bool:
        return self.kills >= self.most_kills or time.monotonic() > self.end

    def run(self, words: list[str]) -> bool:
        """Whether it ended by itself before its moment came."""
        process = subprocess.Popen(words, cwd=self.folder, env=self.env, stdout=subprocess.DEVNULL)
        try:
            process.wait(self.random.uniform(0.5, self.most))
            if process.returncode:
                raise SystemExit(f"{words}: exit code {process.returncode}")
            return True
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.kills += 1
        until = time.monotonic() + PATIENCE
        while self.living() and time.monotonic() < until:
            time.sleep(0.05)
        self.orphans += len(self.living())
        return False

    def through(self, words: list[str]) -> str:
        """The same command, to its end; what it prints."""
        return subprocess.run(words, cwd=self.folder, env=self.env, check=True, capture_output=True, text=True).stdout

    def living(self) -> list[int]:
        """Processes with this run's mark in their environment, zombies apart."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:  # another's, or gone
                continue
        return found

    def left(self) -> list[str]:
        """But for torch's own cache, which it has once for all runs."""
        names = (path.name for path in (self.folder / "tmp").iterdir())
        return sorted(name for name in names if not name.startswith("torchinductor"))


def tuning(a: argparse.Namespace, folder: Path) -> dict:
    from kerf.deploy.measure.record import RecordBook

    path, records, killed = folder / "m.onnx", folder / "records.jsonl", Killed(folder, a)
    killed.through([sys.executable, "-c", NETWORK, str(path)])
    words = [sys.executable, str(ROOT / "model_tune.py"), f"--onnx_path={path}", f"--records={records}"]
    words += ["--seconds=0.2", "--against=onnxruntime", "--trials=10000", "--tolerance=0"]
    kept: list[str] = []
    lost = torn = 0
    while not killed.done:
        if killed.run(words):
            records.unlink()
            kept = []
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            lines = [r.to_json() for r in RecordBook(records).records] if records.exists() else []
        lost += len(kept) - sum(a == b for a, b in zip(kept, lines))
        torn = sum("lines are no records" in str(w.message) for w in said)
        kept = lines
        if (folder / "m.kerf").exists() and not (folder / "m.kerf" / "manifest.json").is_file():
            lost += 1
    killed.through([*words, "--trials=20"])
    return {
        "what": "tuning", "kills": killed.kills, "records": len(kept), "lost": lost, "torn_lines": torn,
        "orphans": killed.orphans, "left_in_tmpdir": killed.left(), "different": 0,
    }  # fmt: skip


def training(a: argparse.Namespace, folder: Path) -> dict:
    killed, different, chains = Killed(folder, a), 0, 0
    start = [sys.executable, str(ROOT / "imagenet.py"), *TRAINING]
    killed.through([*start, f"--job_dir={folder / 'whole'}"])
    whole = losses(folder / "whole")
    while not killed.done:
        chains += 1
        job = folder / f"job{chains}"
        while True:
            words = [*start, f"--job_dir={job}"]
            if (job / "checkpoint" / "last.safetensors").is_file():
                words = [sys.executable, str(ROOT / "imagenet.py"), f"--resume={job}"]
            if killed.done:
                killed.through(words)
                break
            if killed.run(words):
                break
        different += losses(job) != whole
    return {
        "what": "training", "kills": killed.kills, "chains": chains, "epochs": len(whole), "lost": 0,
        "different": different, "orphans": killed.orphans, "left_in_tmpdir": killed.left(),
    }  # fmt: skip


def losses(job: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    return [tuple(row[key] for key in sorted(row) if key not in ("seconds", "images_per_second")) for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
